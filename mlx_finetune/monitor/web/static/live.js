// A run as it goes: what it does now, its curves, what was said about it, and the two things that can be asked of it.

import { about, follow, get, post } from "./api.js"
import { Group, extent } from "./charts.js"
import { code, fill, h, put, visible } from "./dom.js"
import { bytes, capital, clock, count, figure, loss, percent, seconds, short } from "./format.js"
import { ask, say } from "./talk.js"

const MOST_NEW = 3000 // points after which the curves are fetched again, thinned
const ARROWS = { falling: "\u2198", rising: "\u2197", flat: "\u2192", "": "" }
const AT_WORK = ["running", "preparing", "paused"]

const CHARTS = [
  { title: "Learning rate", lines: [{ name: "learning_rate", label: "", colour: "a" }], floor: 0 },
  { title: "Gradient norm", lines: [{ name: "grad_norm", label: "", colour: "a" }], floor: 0 },
  { title: "Targets a second", lines: [{ name: "targets_per_second", label: "", colour: "a" }], floor: 0, show: (value) => (value === null ? "\u2013" : short(value)) },
  {
    title: "Memory",
    lines: [
      { name: "peak_memory_bytes", label: "peak", colour: "a" },
      { name: "process_bytes", label: "process", colour: "d", width: 1 },
      { name: "limit", label: "limit", colour: "warn", width: 1, dash: [5, 4] },
    ],
    floor: 0,
    show: bytes,
  },
]
const MACHINE = [
  { title: "Busy", lines: [{ name: "gpu_percent", label: "GPU", colour: "a" }, { name: "cpu_percent", label: "CPU", colour: "c", width: 1 }], floor: 0, ceiling: 100, show: percent },
  { title: "Power", lines: [{ name: "watts", label: "", colour: "a" }], floor: 0, show: (value) => (value === null ? "\u2013" : `${figure(value)} W`) },
  { title: "Temperature", lines: [{ name: "temperature_celsius", label: "", colour: "b" }], show: (value) => (value === null ? "\u2013" : `${Math.round(value)} \u00b0C`) },
  { title: "Memory of the machine", lines: [{ name: "memory_used_bytes", label: "used", colour: "a" }, { name: "swap_bytes", label: "swap", colour: "b", width: 1 }], floor: 0, show: bytes },
  { title: "Free disk", lines: [{ name: "disk_free_bytes", label: "", colour: "a" }], floor: 0, show: bytes },
]

export function live(name, onState) {
  const view = new Live(name, onState)
  view.begin()
  return view
}

class Live {
  constructor(name, onState) {
    this.name = name
    this.status = {}
    this.curves = {}
    this.detail = null
    this.evaluations = []
    this.limit = null
    this.numNew = 0
    this.isDirty = false
    this.onState = onState
    this.stop = () => {}
    this.clock = setInterval(() => this.status.state && this.head.showEnding(this.status), 5000)
    this.group = new Group((range) => this.zoomed(range))
    this.build()
  }

  build() {
    this.lead = "" // the metric in the place of the loss
    this.main = this.group.add({
      title: "Loss",
      height: 300,
      show: loss, axis: figure,
      lines: [
        { name: "loss", label: "each step", colour: "raw", width: 1 },
        { name: "smooth", label: "smoothed", colour: "a", width: 2 },
        { name: "validation", label: "validation", colour: "b", width: 1.5, points: 6 },
      ],
    })
    this.metrics = {} // group -> its chart; made when the first of its numbers comes
    this.metricGrid = h("div", { class: "grid" })
    this.small = CHARTS.map((options) => this.group.add({ height: 130, ...options }))
    this.machine = MACHINE.map((options) => this.group.add({ height: 110, ...options }))
    const log = h("input", { type: "checkbox", onchange: () => this.main.setLog(log.checked) })
    this.all = h("button", { type: "button", class: "quiet", disabled: true, onclick: () => this.group.setRange(null) }, "Whole run")
    this.tools = h("div", { class: "tools", role: "group", "aria-label": "Range of all curves" },
      h("button", { type: "button", class: "quiet", "aria-label": "Zoom in", title: "Zoom in (+)", onclick: () => this.group.zoom(0.5) }, "+"),
      h("button", { type: "button", class: "quiet", "aria-label": "Zoom out", title: "Zoom out (-)", onclick: () => this.group.zoom(2) }, "\u2212"),
      h("button", { type: "button", class: "quiet", onclick: () => this.lastTenth() }, "Last tenth"),
      this.all,
      h("label", { class: "check" }, log, "log scale"))
    this.head = new Head(this)
    this.side = new Side(this)
    this.none = h("p", { class: "note", hidden: true })
    this.machineSaid = h("span", { class: "dim" })
    this.element = h("div", { class: "live" },
      this.head.element,
      h("div", { class: "columns" },
        h("div", { class: "curves" }, this.tools, this.main.element,
          this.metricGrid,
          h("div", { class: "grid" }, this.small.map((chart) => chart.element)),
          h("h2", {}, "Machine ", this.machineSaid), this.none,
          h("div", { class: "grid" }, this.machine.map((chart) => chart.element))),
        this.side.element))
  }

  async begin() {
    try {
      await this.fetchAll()
    } catch {
      /* the stream says what is wrong, and comes back */
    }
    if (this.isGone) return
    this.stop = follow(this.name, { from: this.position, onNews: (news) => this.take(news), onState: this.onState })
  }

  async fetchAll() {
    const answer = await get(about(this.name, "curves"))
    this.position = answer.id
    this.curves = answer.curves
    this.evaluations = answer.evaluations
    this.limit = answer.memory_limit_bytes
    this.setWords(answer)
    this.numNew = 0
    this.detail = null
    if (this.group.range) await this.fetchDetail(this.group.range)
    this.draw()
  }

  // What a step counts; and a metric that leads, as a reward, in the large chart: there the losses of training and
  // validation are no one measure, and have charts of their own.
  setWords({ lead, units }) {
    if (units) this.small.find((chart) => chart.lines[0].name === "targets_per_second").setTitle(`${capital(units)} a second`)
    if (!lead || lead === this.lead) return
    this.lead = lead
    const before = this.main
    this.main = this.group.add({
      title: capital(lead),
      height: 300,
      lines: [
        { name: `metric:${lead}`, label: "each step", colour: "raw", width: 1 },
        { name: "smooth", label: "smoothed", colour: "a", width: 2 },
        { name: `valid:${lead}`, label: "validation", colour: "b", width: 1.5, points: 6 },
      ],
    })
    this.main.isLog = before.isLog
    before.element.replaceWith(this.main.element)
    this.group.remove(before)
    this.metrics[lead] = this.main
    const losses = [
      { title: "Validation loss", lines: [{ name: "validation", label: "", colour: "b", points: 6 }] },
      { title: "Training loss", lines: [{ name: "loss", label: "", colour: "a" }] },
    ].map((options) => this.group.add({ height: 130, show: loss, axis: figure, ...options }))
    this.metricGrid.prepend(...losses.map((chart) => chart.element))
  }

  async fetchDetail([first, last]) {
    const asked = (this.asked = `${first}-${last}`)
    const answer = await get(about(this.name, `curves?from=${first}&to=${last}`))
    if (this.asked === asked && this.group.range) this.detail = answer.curves
  }

  async take(news) {
    if (news.reset) await this.fetchAll()
    this.append(news.steps)
    this.append(news.machine)
    if (news.status) this.tell(news.status)
    this.element.dataset.steps = this.lastStep()
    if (this.numNew > MOST_NEW && !this.group.range) await this.fetchAll()
    this.later()
  }

  append(columns) {
    if (!columns?.step?.length) return
    for (const [name, values] of Object.entries(columns)) {
      if (name === "step") continue
      const both = [this.curves, this.detail].filter((curves) => curves !== null)
      for (const curves of both) {
        const [xs, ys] = (curves[name] ??= [[], []])
        values.forEach((value, index) => {
          const step = columns.step[index]
          if (value === null || (xs.length && step <= xs[xs.length - 1])) return
          xs.push(step)
          ys.push(value)
        })
      }
    }
    this.numNew += columns.step.length
  }

  lastStep() {
    const xs = this.curves.loss?.[0] ?? []
    return xs.length ? xs[xs.length - 1] : 0
  }

  tell(changed) {
    const before = this.status.state
    Object.assign(this.status, changed)
    if (changed.evaluations) this.evaluations = changed.evaluations
    if (before && changed.evaluations && Object.keys(this.metrics).length) this.fetchAll().catch(() => {})
    if (changed.started) this.limit = changed.started.memory_limit_bytes
    if (changed.lead !== undefined || changed.units) this.setWords(this.status)
    if (changed.machine) put(this.machineSaid, machineWords(changed.machine))
    this.head.show(this.status)
    this.side.show(this.status, changed)
    if (before && changed.state && changed.state !== before) say(`The run is ${changed.state}`)
    else if (before && changed.evaluations?.length) {
      const [step, value] = changed.evaluations[changed.evaluations.length - 1]
      say(`Validation loss ${loss(value)} at step ${step}`)
    }
    document.title = title(this.name, this.status)
  }

  later() {
    if (this.isDirty) return
    this.isDirty = true
    requestAnimationFrame(() => {
      this.isDirty = false
      if (!this.isGone) this.draw()
    })
  }

  draw() {
    const curves = { ...(this.detail ?? this.curves) }
    const known = this.evaluations.filter(([, value]) => value !== null)
    curves.validation = [known.map(([step]) => step), known.map(([, value]) => value)]
    this.group.extent = extent([...Object.values(this.curves), curves.validation])
    const xs = curves.peak_memory_bytes?.[0]
    if (this.limit && xs?.length) curves.limit = [[...new Set([xs[0], xs[xs.length - 1]])], xs.length > 1 ? [this.limit, this.limit] : [this.limit]]
    this.addMetrics()
    for (const chart of this.group.charts) chart.data = curves
    for (const chart of this.group.charts) chart.draw()
    for (const chart of this.machine) chart.element.hidden = !chart.lines.some(({ name }) => this.curves[name]?.[0].length)
    const missing = this.machine.filter((chart) => chart.element.hidden).map((chart) => chart.title.toLowerCase())
    this.none.hidden = !missing.length
    put(this.none, missing.length === this.machine.length ? "Nothing was measured yet." : `Not available here: ${missing.join(", ")}.`)
    this.element.dataset.points = this.curves.loss?.[0].length ?? 0
  }

  // A chart for each group of what the objective measures beside its loss: "metric:rewards/chosen" is of "rewards".
  addMetrics() {
    const names = Object.keys(this.curves).filter((name) => name.startsWith("metric:")).map((name) => name.slice(7))
    for (const group of new Set(names.map((name) => name.split("/")[0]))) {
      if (this.metrics[group]) continue
      const members = names.filter((name) => name.split("/")[0] === group).slice(0, 3)
      const label = (name) => name.split("/")[1] ?? ""
      const lines = members.length > 1
        ? members.map((name, index) => ({ name: `metric:${name}`, label: label(name), colour: "abc"[index] }))
        : [{ name: `metric:${members[0]}`, label: "training", colour: "a" },
           { name: `valid:${members[0]}`, label: "validation", colour: "b", width: 1.5, points: 6 }]
      const chart = this.group.add({ height: 130, title: capital(group.replaceAll("_", " ")), lines })
      this.metrics[group] = chart
      this.metricGrid.append(chart.element)
    }
  }

  async zoomed(range) {
    this.all.disabled = range === null
    if (range === null) this.detail = null
    else await this.fetchDetail(range).catch(() => {})
    this.element.dataset.zoom = range === null ? "" : range.map(Math.round).join("-")
    this.draw()
  }

  lastTenth() {
    const [first, last] = this.group.whole()
    this.group.setRange([Math.max(first, last - Math.max(10, (last - first) / 10)), last])
  }

  redress() {
    this.group.redress()
  }

  destroy() {
    this.isGone = true
    clearInterval(this.clock)
    this.stop()
    this.group.destroy()
  }
}

// What no curve shows: battery, pressure, throttling, energy so far.
function machineWords(machine) {
  const { on_battery: onBattery, battery_percent: battery, pressure, throttled, energy_joules: joules } = machine
  const parts = [
    onBattery ? `on battery${battery === null ? "" : `, ${battery} %`}` : null,
    pressure && pressure !== "normal" ? `memory pressure: ${visible(pressure)}` : null,
    throttled ? `slowed down: ${visible(throttled)}` : null,
    joules ? `${figure(joules / 3600)} Wh so far` : null,
  ].filter(Boolean)
  return parts.length ? `\u2013 ${parts.join("; ")}` : ""
}

export function title(name, status) {
  const total = status.started?.total_steps
  const share = AT_WORK.includes(status.state) && total ? `${Math.floor((100 * status.steps_done) / total)} % \u00b7 ` : ""
  return `${share}${visible(name)} \u00b7 mlxft`
}

// The line across the top: state, progress, the numbers that matter, and what can be asked.
class Head {
  constructor(view) {
    this.view = view
    this.state = h("span", { class: "state" }, "\u2013")
    this.what = h("span", { class: "what" })
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Steps done" })
    this.done = h("span", { class: "done" })
    this.eta = h("span", { class: "eta" })
    this.numbers = {}
    this.labels = {}
    const cell = (key, label) => h("div", {}, (this.labels[key] = h("dt", {}, label)), (this.numbers[key] = h("dd", {}, "\u2013")))
    this.save = h("button", { type: "button", disabled: true, onclick: () => this.askSave() }, "Checkpoint now")
    this.stop = h("button", { type: "button", disabled: true, onclick: () => this.askStop() }, "Stop safely")
    this.element = h("section", { class: "head", "aria-label": "State of the run" },
      h("div", { class: "line" }, this.state, h("h1", {}, visible(view.name)), this.what, h("span", { class: "actions" }, this.save, this.stop)),
      h("div", { class: "line progress" }, this.bar, this.done, this.eta),
      h("dl", { class: "numbers" }, cell("loss", "loss, smoothed"), cell("validation", "validation"), cell("best", "best"), cell("rate", "learning rate"),
        cell("norm", "gradient norm"), cell("speed", "targets/s"), cell("memory", "memory, peak"), cell("begun", "begun"), cell("took", "took")))
  }

  show(status) {
    const { state, started, step, phase } = status
    put(this.state, state ?? "\u2013")
    this.state.dataset.state = state ?? ""
    const isAtWork = AT_WORK.includes(state)
    this.save.disabled = this.stop.disabled = !isAtWork
    put(this.what, started ? `${started.task} of ${visible(started.model)} on ${visible(started.device)}, ${started.compute_dtype}` : "")
    const total = started?.total_steps
    const isPhase = state === "preparing" && phase
    const share = isPhase ? phase.share : total ? status.steps_done / total : null
    if (share === null) this.bar.removeAttribute("value")
    else this.bar.value = share
    put(this.done, isPhase ? visible([phase.name, phase.detail, phase.amount].filter(Boolean).join(" "))
      : total ? `step ${count(status.steps_done)} of ${count(total)}, ${Math.floor(100 * share)} %${step ? `, epoch ${step.epoch.toFixed(2)}` : ""}` : "")
    this.showEnding(status)
    const evaluation = status.evaluations?.[status.evaluations.length - 1]
    const numbers = {
      loss: `${loss(status.smooth)} ${ARROWS[status.trend] ?? ""}`.trim(),
      validation: evaluation ? loss(evaluation[1]) : "\u2013",
      best: status.best ? `${loss(status.best[1])} at ${count(status.best[0])}` : "\u2013",
      rate: step ? figure(step.learning_rate) : "\u2013",
      norm: step ? (step.grad_norm === null ? "not finite" : figure(step.grad_norm)) : "\u2013",
      speed: step ? count(step.targets_per_second) : "\u2013",
      memory: ofLimit(status.peak_memory_bytes, started?.memory_limit_bytes),
      begun: clock(status.first_time),
      took: status.first_time ? seconds(status.took_seconds) : "\u2013",
    }
    for (const [key, text] of Object.entries(numbers)) put(this.numbers[key], text)
    const { lead, units, trend } = status
    put(this.labels.loss, `${lead || "loss"}, smoothed`)
    put(this.labels.validation, lead ? "validation loss" : "validation")
    put(this.labels.best, lead ? "best loss" : "best")
    if (units) put(this.labels.speed, `${units}/s`)
    this.numbers.loss.dataset.trend = trend === (lead ? "rising" : "falling") ? "good" : trend === (lead ? "falling" : "rising") ? "bad" : ""
  }

  showEnding(status) {
    put(this.eta, ending(status))
  }

  async askSave() {
    const text = "The training saves a checkpoint after the step at hand and goes on. What it learns does not change."
    if (await ask("Save a checkpoint now?", text, "Save")) await this.send("save", "A checkpoint was asked for")
  }

  async askStop() {
    const text = "The training finishes its step, saves everything and leaves. It can be continued later, exactly from there."
    if (await ask("Stop this training?", text, "Stop safely")) await this.send("stop", "The training was asked to stop")
  }

  async send(what, sentence) {
    try {
      await post(about(this.view.name, what), { confirm: true })
      say(sentence, true)
    } catch (error) {
      say(error.message, true)
    }
  }
}

// "5.2 of 18.0 GB", with both units where they differ.
function ofLimit(value, limit) {
  const [shown, most] = [bytes(value), bytes(limit)]
  if (!limit || !value) return shown
  const isSame = shown.split(" ")[1] === most.split(" ")[1]
  return `${isSame ? shown.split(" ")[0] : shown} of ${most}`
}

// The end as clock time, the reason of a pause, or how it ended.
function ending(status) {
  const { state, outcome, paused } = status
  if (state === "paused") return `paused: ${visible(paused ?? "")}`
  if (status.eta && state === "running") return `done ${clock(status.eta)}, ${seconds(Math.max(0, status.eta - Date.now() / 1000))} left`
  if (outcome?.kind === "finished") return `finished ${clock(status.last_time)}${outcome.reason === "early_stopping" ? ", validation loss stopped improving" : ""}`
  if (outcome?.kind === "failed") return visible(outcome.message)
  if (outcome?.kind === "stopped") return `stopped ${clock(status.last_time)}`
  if (state === "interrupted") return `no word since ${clock(status.last_time)}`
  return ""
}

// Beside the curves: answers, how to go on, what was said, checkpoints, the recipe.
class Side {
  constructor(view) {
    this.view = view
    this.next = h("div", {})
    this.answers = h("div", { class: "answers" }, h("p", { class: "note" }, "None yet."))
    this.said = h("ul", { class: "plain" })
    this.saved = h("ul", { class: "plain" })
    this.recipe = h("pre", { class: "recipe" })
    const section = (heading, body, id) => h("section", { id }, h("h2", {}, heading), body)
    this.nextSection = section("Next", this.next)
    this.element = h("aside", { class: "side" },
      this.nextSection,
      section("Last answers", this.answers),
      section("Warnings and notes", this.said),
      section("Checkpoints", this.saved),
      h("details", { ontoggle: (event) => event.target.open && this.showRecipe() }, h("summary", {}, "Recipe as resolved"), this.recipe))
  }

  show(status, changed) {
    if (changed.frames) this.showAnswers(changed.frames)
    if (changed.notices || changed.restarts) this.showSaid(status)
    if (changed.checkpoints) {
      const rows = [...status.checkpoints].reverse().slice(0, 12)
      fill(this.saved, rows.length ? rows.map((one) => h("li", {}, h("span", {}, `step ${count(one.step)}`), h("span", { class: "dim" }, bytes(one.num_bytes)))) : [h("li", { class: "note" }, "None yet.")])
    }
    if (changed.go_on || changed.state || changed.outcome !== undefined) this.showNext(status)
  }

  showNext({ state, talk, go_on: goOn, outcome }) {
    const parts = []
    if (AT_WORK.includes(state)) parts.push(h("p", { class: "note" }, "Closing this page or its server leaves the training alone."))
    if (outcome?.kind === "failed" && outcome.hint) parts.push(h("p", {}, visible(outcome.hint)))
    if (state === "finished") parts.push(code(visible(talk)))
    if (state !== "finished" && goOn) parts.push(h("p", { class: "note" }, "To go on:"), code(visible(goOn)))
    fill(this.next, parts)
    this.nextSection.hidden = parts.length === 0
  }

  async showAnswers([number, step]) {
    if (!number) return
    try {
      const { frames } = await get(about(this.view.name, "filmstrip"))
      const frame = await get(about(this.view.name, `filmstrip/${frames.length - 1}`))
      fill(this.answers, [h("p", { class: "note" }, `after step ${count(step)}; marked: changed since the answers before`), ...frame.answers.map(answer)])
    } catch {
      /* said elsewhere; comes with the next answers */
    }
  }

  showSaid({ notices, restarts }) {
    const items = [
      ...(restarts ?? []).map((sentence) => h("li", { class: "restart" }, visible(sentence))),
      ...[...(notices ?? [])].reverse().map((one) => h("li", { class: one.level === "warning" ? "warning" : "info" }, visible(one.message), one.hint ? h("span", { class: "dim" }, ` \u2192 ${visible(one.hint)}`) : null)),
    ]
    fill(this.said, items.length ? items : [h("li", { class: "note" }, "None.")])
  }

  async showRecipe() {
    try {
      const { settings } = await get(about(this.view.name, "settings"))
      put(this.recipe, visible(lines(settings).join("\n")))
    } catch (error) {
      put(this.recipe, error.message)
    }
  }
}

function lines(settings) {
  const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value)
  const own = Object.entries(settings).filter(([, value]) => !isTable(value)).map(([key, value]) => `${key} = ${JSON.stringify(value)}`)
  const tables = Object.entries(settings).filter(([, value]) => isTable(value)).flatMap(([key, value]) => ["", `[${key}]`, ...lines(value)])
  return [...own, ...tables]
}

// One prompt and its answer; what changed is marked.
export function answer({ prompt, pieces }) {
  const shown = pieces.map(([text, isChanged]) => (isChanged ? h("mark", {}, visible(text)) : visible(text)))
  const isEmpty = pieces.every(([text]) => !text.trim())
  return h("article", { class: "answer" }, h("h3", { dir: "auto" }, visible(prompt)), h("p", { class: "text", dir: "auto" }, isEmpty ? h("span", { class: "note" }, "(nothing)") : shown))
}
