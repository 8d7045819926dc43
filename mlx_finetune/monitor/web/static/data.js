// Rows of the run's data as the model reads them: each token learned, only read, or cut.

import { about, get } from "./api.js"
import { fill, h, put, visible } from "./dom.js"
import { count } from "./format.js"

const PAGE = 10

export function data(name) {
  return new Data(name)
}

class Data {
  constructor(name) {
    this.name = name
    this.first = 0
    this.splits = {}
    this.split = h("select", { onchange: () => this.go(0) }, ["train", "valid", "test"].map((one) => h("option", { value: one }, one)))
    this.back = h("button", { type: "button", class: "quiet", disabled: true, onclick: () => this.go(this.first - PAGE) }, "\u2190 before")
    this.on = h("button", { type: "button", class: "quiet", disabled: true, onclick: () => this.go(this.first + PAGE) }, "after \u2192")
    this.number = h("input", { type: "number", min: 1, value: 1, class: "number", onchange: () => this.go(Number(this.number.value) - 1) })
    this.where = h("output", { class: "where" })
    this.note = h("p", { class: "note", role: "status" }, "Reading the data \u2026")
    this.list = h("div", { class: "rows" })
    this.element = h("section", { class: "page data", "aria-label": "Data" },
      h("h1", {}, "Data"),
      h("div", { class: "tools" }, h("label", {}, "Split ", this.split), this.back, this.on, h("label", {}, "Row ", this.number), this.where),
      h("p", { class: "legend" }, h("span", { class: "t-learned" }, "learned"), h("span", { class: "t-read" }, "only read"), h("span", { class: "t-cut" }, "cut")),
      this.note, this.list)
    this.go(0)
  }

  async go(first) {
    const split = this.split.value
    const total = this.splits[split]
    first = Math.max(0, Math.min(Number.isFinite(first) ? Math.floor(first) : 0, total === undefined ? 0 : total - 1))
    const asked = (this.asked = `${split}-${first}`)
    try {
      const answer = await get(about(this.name, `rows?split=${split}&from=${first}&count=${PAGE}`))
      if (this.asked !== asked) return
      this.splits = answer.splits
      this.first = first
      this.show(answer, split)
    } catch (error) {
      if (this.asked === asked) put(this.note, error.message)
    }
  }

  show(answer, split) {
    const total = answer.splits[split]
    put(this.note, `Tokens of ${visible(answer.model)}; template: ${visible(answer.template)}; at most ${count(answer.max_seq_length)} tokens a row`)
    put(this.where, total ? `${count(this.first + 1)} to ${count(Math.min(total, this.first + PAGE))} of ${count(total)}` : "no rows")
    this.number.value = this.first + 1
    this.number.max = total
    this.back.disabled = this.first === 0
    this.on.disabled = this.first + PAGE >= total
    fill(this.list, answer.rows.map(row))
  }

  destroy() {
    this.asked = ""
  }
}

function row({ where, method, notes, num_tokens: all, num_learned: learned, num_cut: cut, tokens }) {
  const head = `${visible(where)} \u00b7 ${count(all)} tokens, ${count(learned)} learned${cut ? `, ${count(cut)} cut` : ""}${method ? ` \u00b7 mask by ${method}` : ""}`
  const more = all > tokens.length ? h("p", { class: "note" }, `and ${count(all - tokens.length)} more`) : null
  return h("article", { class: "row" }, h("h3", {}, head), h("p", { class: "tokens" }, tokens.map(([id, text, state]) => token(text, `t-${state}`, `${id}, ${state}`))), more, notes.map((note) => h("p", { class: "note" }, `\u2192 ${visible(note)}`)))
}

// A token with its line ends both shown and made.
export function token(text, kind, title) {
  const parts = visible(text).split("\n")
  const inner = parts.flatMap((part, index) => (index ? [h("span", { class: "end" }, "\u21b5"), h("br"), part] : [part]))
  return h("bdi", { class: `token ${kind}`, title }, inner.filter((part) => part !== ""))
}
