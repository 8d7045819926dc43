// Every run of the folder in a table: sorted by any column, two of them chosen to be compared.

import { get } from "./api.js"
import { fill, h, put, visible } from "./dom.js"
import { bytes, clock, count, loss, seconds } from "./format.js"

const COLUMNS = [
  ["name", "Run", (run) => run.name],
  ["state", "State", (run) => run.state],
  ["model", "Model", (run) => run.model],
  ["task", "Task", (run) => run.task],
  ["step", "Steps", (run) => run.step],
  ["first_loss", "Before", (run) => run.first_loss],
  ["result_loss", "After", (run) => run.result_loss],
  ["seconds", "Took", (run) => run.seconds],
  ["num_bytes", "Size", (run) => run.num_bytes],
  ["first_time", "Begun", (run) => run.first_time],
]
const FIGURES = new Set(["step", "first_loss", "result_loss", "seconds", "num_bytes", "first_time"])

export function runs(link) {
  return new Runs(link)
}

class Runs {
  constructor(link) {
    this.link = link
    this.sorted = ["first_time", -1]
    this.rows = []
    this.chosen = []
    this.heads = COLUMNS.map(([key, label]) => h("th", { scope: "col", class: FIGURES.has(key) ? "figure" : "" }, h("button", { type: "button", onclick: () => this.sort(key) }, label)))
    this.body = h("tbody", {})
    this.compare = h("a", { class: "button", href: "#/compare", "aria-disabled": "true" }, "Compare two")
    this.note = h("p", { class: "note", role: "status" }, "Reading \u2026")
    this.element = h("section", { class: "page runs", "aria-label": "Runs" }, h("h1", {}, "Runs"), h("div", { class: "tools" }, this.compare, h("span", { class: "dim" }, "Mark two runs to lay their curves over each other.")),
      h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of runs" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "hidden" }, "Compare")), this.heads)), this.body)), this.note)
    this.load()
    this.timer = setInterval(() => document.visibilityState === "visible" && this.load(), 5000)
  }

  async load() {
    try {
      const { runs: found } = await get("/api/runs")
      const text = JSON.stringify(found)
      if (text === this.text) return
      this.text = text
      this.rows = found
      put(this.note, found.length ? "" : "No runs here yet; mlxft train RECIPE starts one.")
      this.show()
    } catch (error) {
      put(this.note, error.message)
    }
  }

  sort(key) {
    this.sorted = [key, this.sorted[0] === key ? -this.sorted[1] : FIGURES.has(key) ? -1 : 1]
    this.show()
  }

  show() {
    const [key, direction] = this.sorted
    const value = COLUMNS.find(([one]) => one === key)[2]
    const known = (run) => value(run) !== null && value(run) !== undefined && value(run) !== ""
    const order = (a, b) => (known(a) && known(b) ? direction * (typeof value(a) === "string" ? value(a).localeCompare(value(b), "en", { numeric: true }) : value(a) - value(b)) : known(b) - known(a))
    COLUMNS.forEach(([one], index) => (one === key ? this.heads[index].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending") : this.heads[index].removeAttribute("aria-sort")))
    const focused = document.activeElement?.dataset?.run
    fill(this.body, [...this.rows].sort(order).map((run) => this.row(run)))
    if (focused) this.body.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus()
  }

  row(run) {
    const box = h("input", { type: "checkbox", checked: this.chosen.includes(run.name), "aria-label": `Compare ${visible(run.name)}`, onchange: () => this.choose(run.name, box.checked) })
    box.dataset.run = run.name
    const total = run.total_steps ? `${count(run.step)} / ${count(run.total_steps)}` : "\u2013"
    const cell = (text, kind) => h("td", { class: kind ?? "" }, text)
    return h("tr", {}, h("td", {}, box), h("th", { scope: "row" }, h("a", { href: this.link(run.name) }, h("bdi", {}, visible(run.name)))),
      h("td", {}, h("span", { class: "state small", "data-state": run.state }, run.state)), cell(visible(run.model ?? "")), cell(run.task ?? ""), cell(total, "figure"), cell(loss(run.first_loss), "figure"), cell(loss(run.result_loss), "figure"),
      cell(seconds(run.seconds), "figure"), cell(bytes(run.num_bytes), "figure"), cell(clock(run.first_time), "figure"))
  }

  choose(name, isChosen) {
    this.chosen = this.chosen.filter((one) => one !== name)
    if (isChosen) this.chosen = [...this.chosen, name].slice(-2)
    const isReady = this.chosen.length === 2
    this.compare.setAttribute("aria-disabled", String(!isReady))
    this.compare.href = isReady ? `#/compare/${this.chosen.map(encodeURIComponent).join("/")}` : "#/compare"
    for (const box of this.body.querySelectorAll("input")) box.checked = this.chosen.includes(box.dataset.run)
  }

  destroy() {
    clearInterval(this.timer)
  }
}
