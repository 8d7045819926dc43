// The filmstrip: the user's own prompts before training and at every evaluation, along the loss, with a slider.

import { about, follow, get } from "./api.js"
import { Group } from "./charts.js"
import { code, fill, h, put, visible } from "./dom.js"
import { count, figure, loss } from "./format.js"
import { answer } from "./live.js"

export function answers(name, onState) {
  const view = new Answers(name, onState)
  view.begin()
  return view
}

class Answers {
  constructor(name, onState) {
    this.name = name
    this.onState = onState
    this.frames = []
    this.checkpoints = {}
    this.number = 0
    this.isAtEnd = true
    this.stop = () => {}
    this.group = new Group()
    this.loss = this.group.add({
      title: "Loss", height: 150, show: loss, axis: figure,
      lines: [{ name: "smooth", label: "smoothed", colour: "a", width: 2 }, { name: "validation", label: "validation", colour: "b", points: 6 }],
    })
    this.slider = h("input", { type: "range", min: 0, max: 0, value: 0, step: 1, disabled: true, "aria-label": "Step of the answers", oninput: () => this.show(Number(this.slider.value)) })
    this.back = h("button", { type: "button", class: "quiet", "aria-label": "The answers before", onclick: () => this.show(this.number - 1) }, "\u2190")
    this.on = h("button", { type: "button", class: "quiet", "aria-label": "The answers after", onclick: () => this.show(this.number + 1) }, "\u2192")
    this.where = h("output", { class: "where" }, "\u2013")
    this.against = h("select", { onchange: () => this.show(this.number) }, h("option", { value: "before" }, "the answers before"), h("option", { value: "first" }, "the first answers"))
    this.chat = h("div", { class: "chat" })
    this.list = h("div", { class: "answers wide" })
    this.none = h("p", { class: "note" }, "Reading \u2026")
    this.strip = h("div", { hidden: true },
      this.loss.element,
      h("div", { class: "slider" }, this.back, this.slider, this.on, this.where),
      h("div", { class: "tools" }, h("label", {}, "Marked: changed since ", this.against), this.chat),
      this.list)
    this.element = h("section", { class: "page filmstrip", "aria-label": "Answers", onkeydown: (event) => this.key(event) }, h("h1", {}, "Answers"), this.none, this.strip)
  }

  async begin() {
    this.stop = follow(this.name, { from: "", onNews: (news) => this.take(news), onState: this.onState })
  }

  async take(news) {
    if (this.isGone || !(news.reset || news.status?.frames || news.status?.checkpoints)) return
    const [strip, curves] = await Promise.all([get(about(this.name, "filmstrip")), get(about(this.name, "curves?points=600"))])
    this.frames = strip.frames
    this.checkpoints = strip.checkpoints
    this.none.hidden = this.frames.length > 0
    this.strip.hidden = this.frames.length === 0
    put(this.none, strip.none)
    if (!this.frames.length) return
    this.slider.max = this.frames.length - 1
    this.slider.disabled = this.frames.length < 2
    const known = curves.evaluations.filter(([, value]) => value !== null)
    this.loss.setData({ ...curves.curves, validation: [known.map(([step]) => step), known.map(([, value]) => value)] })
    await this.show(this.isAtEnd ? this.frames.length - 1 : this.number)
  }

  async show(number) {
    number = Math.min(this.frames.length - 1, Math.max(0, number))
    this.number = number
    this.isAtEnd = number === this.frames.length - 1
    const { step, loss: value } = this.frames[number]
    this.slider.value = number
    this.back.disabled = number === 0
    this.on.disabled = this.isAtEnd
    const text = `${step ? `step ${count(step)}` : "before training"}, ${number + 1} of ${this.frames.length}${value === null ? "" : `, validation ${loss(value)}`}`
    put(this.where, text)
    this.slider.setAttribute("aria-valuetext", text)
    this.loss.setMark(step)
    const asked = this.checkpoints[`checkpoint-${step}`]
    fill(this.chat, asked ? [code(visible(asked))] : [])
    const frame = await get(about(this.name, `filmstrip/${number}?against=${this.against.value}`)).catch(() => null)
    if (frame && frame.number === this.number) fill(this.list, frame.answers.map(answer))
    this.element.dataset.step = step
  }

  key(event) {
    if (event.target.matches("select, .plot, input") || event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key === "ArrowLeft") this.show(this.number - 1)
    if (event.key === "ArrowRight") this.show(this.number + 1)
  }

  redress() {
    this.group.redress()
  }

  destroy() {
    this.isGone = true
    this.stop()
    this.group.destroy()
  }
}
