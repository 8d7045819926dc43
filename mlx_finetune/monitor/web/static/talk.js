// Words to the person: a question that has to be answered, a sentence for whoever listens rather than looks.

import { fill, h, put } from "./dom.js"

let timer = 0

// Read out politely; shown too where `isShown`, for it answers something that was done.
export function say(sentence, isShown = false) {
  const said = document.getElementById("said")
  put(said, sentence)
  said.classList.toggle("hidden", !isShown)
  clearTimeout(timer)
  if (isShown) timer = setTimeout(() => said.classList.add("hidden"), 6000)
}

// True once it is confirmed; Escape and every other way out are a no.
export function ask(title, text, yes) {
  const dialog = document.getElementById("ask")
  return new Promise((done) => {
    const end = (answer) => {
      dialog.onclose = null
      dialog.close()
      done(answer)
    }
    const no = h("button", { type: "button", class: "quiet", onclick: () => end(false) }, "Cancel")
    fill(dialog, [h("h2", { id: "ask-title" }, title), h("p", {}, text), h("div", { class: "actions" }, no, h("button", { type: "button", class: "main", onclick: () => end(true) }, yes))])
    dialog.onclose = () => end(false)
    dialog.showModal()
    no.focus()
  })
}
