// Which view is shown, of which run; the address after # says it, so that back, forward and reload work.

import { answers } from "./answers.js"
import { get, remember, takeToken } from "./api.js"
import { compare } from "./compare.js"
import { data } from "./data.js"
import { fill, h, put, visible } from "./dom.js"
import { live } from "./live.js"
import { runs } from "./runs.js"
import { tokens } from "./tokens.js"

const VIEWS = { live, answers, data, tokens }
const TABS = [["live", "Live"], ["answers", "Answers"], ["data", "Data"], ["tokens", "Tokens"], ["runs", "Runs"], ["compare", "Compare"]]
const main = document.getElementById("main")
const picker = document.getElementById("run")
const gone = document.getElementById("gone")
let view = null
let names = []
let chosen = ""

// --- the theme ---

const THEMES = ["", "light", "dark"]
const themeButton = document.getElementById("theme")

function theme() {
  return document.documentElement.dataset.theme ?? ""
}

function showTheme() {
  const name = { "": "System", light: "Light", dark: "Dark" }[theme()]
  put(themeButton, name)
  themeButton.setAttribute("aria-label", `Colours: ${name.toLowerCase()}. Change`)
}

themeButton.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]
  if (next) document.documentElement.dataset.theme = next
  else delete document.documentElement.dataset.theme
  try {
    localStorage.setItem("mlxft-theme", next)
  } catch {
    /* kept until the page is left */
  }
  showTheme()
  view?.redress?.()
})
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view?.redress?.())

// --- the server, here or gone ---

let goneTimer = 0

function onState(state, error) {
  clearTimeout(goneTimer)
  if (state === "here") {
    gone.hidden = true
  } else if (state === "refused") {
    if (error.status === 401) return askToken()
    show(h("section", { class: "page" }, h("h1", {}, "Not here"), h("p", {}, error.message)))
  } else {
    goneTimer = setTimeout(() => {
      put(gone, "The server of this page is gone. Trainings go on without it; mlxft monitor --web starts it again, and this page comes back by itself.")
      gone.hidden = false
    }, 1200)
  }
}

function askToken() {
  remember("")
  const field = h("input", { type: "password", autocomplete: "off", required: true, id: "token" })
  const form = h("form", { class: "token-form", onsubmit: (event) => {
    event.preventDefault()
    remember(/token=([^&\s]+)/.exec(field.value)?.[1] ?? field.value)
    begin()
  } }, h("label", { for: "token" }, "Token or address"), field, h("button", { class: "main" }, "Open"))
  show(h("section", { class: "page" }, h("h1", {}, "This page needs its token"), h("p", {}, "Open the address that mlxft monitor --web printed in the terminal, or paste it here."), form))
  field.focus()
}

// --- where we are ---

const link = (tab, name) => `#/${tab}/${encodeURIComponent(name)}`

function place() {
  const [tab, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map((part) => {
    try {
      return decodeURIComponent(part)
    } catch {
      return ""
    }
  })
  return { tab: TABS.some(([key]) => key === tab) ? tab : "live", rest }
}

function show(element) {
  view?.destroy?.()
  view = null
  fill(main, [element])
}

function go() {
  const { tab, rest } = place()
  if (rest[0] && tab !== "compare" && names.includes(rest[0])) chosen = rest[0]
  const name = tab === "runs" || tab === "compare" ? chosen : rest[0] || chosen
  fill(document.getElementById("tabs"), TABS.map(([key, label]) =>
    h("a", { href: key === "runs" || key === "compare" ? `#/${key}` : link(key, name), "aria-current": key === tab ? "page" : null }, label)))
  showNames()
  document.title = `${TABS.find(([key]) => key === tab)[1]} \u00b7 mlxft`
  view?.destroy?.()
  view = null
  if (tab === "runs") view = runs((one) => link("live", one))
  else if (tab === "compare") view = compare(names, rest[0] || chosen, rest[1] || names.find((one) => one !== (rest[0] || chosen)))
  else if (name) view = VIEWS[tab](name, onState)
  fill(main, [view ? view.element : h("section", { class: "page" }, h("h1", {}, "No runs yet"), h("p", {}, "mlxft train RECIPE starts one; it is shown here as soon as it is there."))])
}

function showNames() {
  if (picker.options.length === names.length && names.every((name, index) => picker.options[index].value === name)) {
    picker.value = chosen
    return
  }
  fill(picker, names.map((name) => h("option", { value: name, selected: name === chosen }, visible(name))))
}

picker.addEventListener("change", () => {
  const { tab } = place()
  location.hash = link(VIEWS[tab] ? tab : "live", picker.value)
})

async function readNames() {
  const found = await get("/api/names")
  names = found.names
  if (!names.includes(chosen)) chosen = names.includes(found.chosen) ? found.chosen : names.at(-1) ?? ""
}

async function begin() {
  try {
    await readNames()
    onState("here")
  } catch (error) {
    if (error.status === 401) return askToken()
    onState("gone")
    setTimeout(begin, 2000)
    return
  }
  go()
}

setInterval(async () => {
  if (document.visibilityState !== "visible" || main.querySelector(".token-form")) return
  const before = names.join("\n")
  try {
    await readNames()
    if (!view?.stop) onState("here")
  } catch (error) {
    if (!view?.stop) onState(error.status === 401 ? "refused" : "gone", error)
    return
  }
  if (names.join("\n") !== before) before ? showNames() : go()
}, 10_000)

window.addEventListener("hashchange", () => (/[#&](token|ticket)=/.test(location.hash) ? enter() : go()))

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault()
  main.focus()
})

async function enter() {
  if (await takeToken()) await begin()
  else askToken()
}

showTheme()
enter()
