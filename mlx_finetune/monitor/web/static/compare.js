// Two runs: their losses over each other, what their recipes say differently, how each ended.

import { get } from "./api.js"
import { Group } from "./charts.js"
import { fill, h, put, visible } from "./dom.js"
import { capital, count, figure, loss } from "./format.js"

export function compare(names, first, second) {
  return new Compare(names, first, second)
}

class Compare {
  constructor(names, first, second) {
    this.group = new Group()
    const pick = (label, chosen) => h("select", { "aria-label": label, onchange: () => this.chosen() }, names.map((name) => h("option", { value: name, selected: name === chosen }, visible(name))))
    this.picks = [pick("First run", first), pick("Second run", second)]
    this.curves = h("div", {})
    this.table = h("div", { class: "scroll" })
    this.note = h("p", { class: "note", role: "status" })
    this.element = h("section", { class: "page compare", "aria-label": "Compare" }, h("h1", {}, "Compare"),
      h("div", { class: "tools" }, h("i", { class: "swatch c-a" }), this.picks[0], h("span", { class: "dim" }, "with"), h("i", { class: "swatch c-b" }), this.picks[1]), this.note, this.curves, this.table)
    this.load()
  }

  chosen() {
    location.hash = `#/compare/${this.picks.map((pick) => encodeURIComponent(pick.value)).join("/")}`
  }

  async load() {
    const names = this.picks.map((pick) => pick.value)
    if (names.length < 2 || !names[0] || !names[1]) return put(this.note, "There are no two runs yet.")
    if (names[0] === names[1]) return put(this.note, "Choose two different runs.")
    try {
      const found = await get(`/api/compare?first=${encodeURIComponent(names[0])}&second=${encodeURIComponent(names[1])}`)
      if (!this.isGone) this.show(found, names)
    } catch (error) {
      put(this.note, error.message)
    }
  }

  show({ sides, recipe, refusal }, names) {
    const curves = {}
    sides.forEach((side, index) => {
      for (const [name, value] of Object.entries(side.curves)) curves[`${name}-${index}`] = value
      const known = side.evaluations.filter(([, value]) => value !== null)
      curves[`validation-${index}`] = [known.map(([step]) => step), known.map(([, value]) => value)]
    })
    const pair = (name, more) => ["a", "b"].map((colour, index) => ({ name: `${name}-${index}`, label: visible(names[index]), colour, ...more }))
    const [first, second] = sides
    const smooth = pair("smooth", { width: 2 })
    const leading = first.lead === second.lead ? [[first.lead, smooth]] : sides.map(({ lead }, index) => [lead, [smooth[index]]]) // a reward is no loss
    const charts = [
      ...leading.map(([lead, lines]) => ({ title: lead ? `${capital(lead)}, smoothed` : "Training loss, smoothed", height: 240, show: loss, axis: figure, lines })),
      { title: "Validation loss", height: 180, show: loss, axis: figure, lines: pair("validation", { points: 5 }) },
      { title: "Learning rate", height: 110, floor: 0, lines: pair("learning_rate", { label: "" }) },
      { title: "Gradient norm", height: 110, floor: 0, lines: pair("grad_norm", { width: 1, label: "" }) },
      { title: `${first.units === second.units ? capital(first.units) : "Learned from"} a second`, height: 110, floor: 0, lines: pair("targets_per_second", { width: 1, label: "" }) },
    ].map((options) => this.group.add(options))
    fill(this.curves, [charts.slice(0, -3).map((chart) => chart.element), h("div", { class: "grid" }, charts.slice(-3).map((chart) => chart.element))])
    for (const chart of charts) chart.data = curves
    for (const chart of charts) chart.draw()
    const best = sides.map(({ evaluations }) => evaluations.filter(([, value]) => value !== null).reduce((a, b) => (a && a[1] <= b[1] ? a : b), null))
    const results = [["best validation loss", ...best.map((one) => (one ? `${loss(one[1])} at step ${count(one[0])}` : "\u2013"))], ["last step", ...sides.map(({ curves: one }) => count(one.loss?.[0].at(-1) ?? 0))]]
    const rows = (list) => list.map(([key, ...values]) => h("tr", {}, h("th", { scope: "row" }, key), values.map((value) => h("td", {}, h("bdi", {}, visible(String(value)))))))
    const head = (title) => h("thead", {}, h("tr", {}, h("th", { scope: "col" }, title), names.map((name) => h("th", { scope: "col" }, h("bdi", {}, visible(name))))))
    fill(this.table, [
      h("table", { class: "pairs" }, head("Result"), h("tbody", {}, rows(results))),
      recipe.length ? h("table", { class: "pairs", id: "recipe-diff" }, head("Recipe, where they differ"), h("tbody", {}, rows(recipe))) : h("p", { class: "note" }, refusal ? visible(refusal) : "Their recipes are the same."),
    ])
  }

  redress() {
    this.group.redress()
  }

  destroy() {
    this.isGone = true
    this.group.destroy()
  }
}
