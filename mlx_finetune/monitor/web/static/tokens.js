// The token microscope: the loss of every token under the base and under what was trained, as shades.

import { about, get } from "./api.js"
import { fill, h, put, visible } from "./dom.js"
import { token } from "./data.js"

export function tokens(name) {
  return new Tokens(name)
}

class Tokens {
  constructor(name) {
    this.note = h("p", { class: "note", role: "status" }, "Reading \u2026")
    this.body = h("div", {})
    this.element = h("section", { class: "page lens", "aria-label": "Tokens" }, h("h1", {}, "Tokens, before and after"), this.note, this.body)
    this.load(name)
  }

  async load(name) {
    try {
      const found = await get(about(name, "microscope"))
      if (found.rows === null) return put(this.note, found.none)
      put(this.note, visible(found.summary))
      fill(this.body, [legend(found), ...found.moved.map(moved), ...found.rows.map(row)])
    } catch (error) {
      put(this.note, error.message)
    }
  }

  destroy() {}
}

const legend = ({ verdicts }) => h("table", { class: "verdicts" }, h("tbody", {}, verdicts.map(([name, share, meaning]) =>
  h("tr", {}, h("th", { scope: "row" }, h("span", { class: `token v-${name} s-2` }, name)), h("td", { class: "figure" }, share), h("td", {}, meaning)))))

const moved = ({ title, tokens: found }) => h("section", {}, h("h2", {}, title), found.length ? h("table", { class: "moved" }, h("tbody", {}, found.map((one) =>
  h("tr", {}, h("td", { class: "figure" }, `${one.base} \u2192 ${one.tuned}`), h("td", { class: "tokens" }, h("bdi", {}, inline(one.before)), shaded(one.token), h("bdi", {}, inline(one.after))))))) : h("p", { class: "note" }, "none"))

const inline = (text) => visible(text).replaceAll("\n", "\u21b5")

const shaded = ([text, verdict, shade, title]) => token(text || "\u00b7", `v-${verdict} s-${shade}`, title)

const row = ({ head, notes, tokens: found }) => h("article", { class: "row" }, h("h3", {}, visible(head)), h("p", { class: "tokens" }, found.map(shaded)), notes.map((note) => h("p", { class: "note" }, `\u2192 ${visible(note)}`)))
