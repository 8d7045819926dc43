// One chart: a heading with the values under the cursor, uPlot below, a range that is shared with the other charts of
// its group. Zoom by dragging, by + and -, with the arrows; Escape or 0 shows everything.

import { h, put } from "./dom.js"
import { count, figure } from "./format.js"

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

// Charts that share their range over the steps and their cursor.
export class Group {
  constructor(onRange) {
    this.charts = []
    this.range = null
    this.extent = null
    this.onRange = onRange
    this.sync = uPlot.sync(`group-${Math.random()}`)
    this.watch = new ResizeObserver((entries) => {
      for (const { target } of entries) this.charts.find((chart) => chart.holder === target)?.resize()
    })
  }

  add(options) {
    const chart = new Chart(this, options)
    this.charts.push(chart)
    this.watch.observe(chart.holder)
    return chart
  }

  remove(chart) {
    this.watch.unobserve(chart.holder)
    chart.destroy()
    this.charts = this.charts.filter((other) => other !== chart)
  }

  setRange(range) {
    const same = (this.range === null && range === null) || (range && this.range && range[0] === this.range[0] && range[1] === this.range[1])
    if (same) return
    this.range = range
    for (const chart of this.charts) chart.draw()
    this.onRange?.(range)
  }

  // From the first step to the last of everything, also while a part is all that was fetched.
  whole() {
    if (this.extent) return this.extent
    const ends = this.charts.flatMap((chart) => chart.ends())
    return ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1]
  }

  zoom(factor, centre) {
    const [first, last] = this.range ?? this.whole()
    const all = this.whole()
    const middle = centre ?? (first + last) / 2
    const half = Math.max(1, ((last - first) / 2) * factor)
    const next = [Math.max(all[0], middle - half), Math.min(all[1], middle + half)]
    this.setRange(next[0] <= all[0] && next[1] >= all[1] ? null : next)
  }

  pan(share) {
    if (!this.range) return
    const all = this.whole()
    const width = this.range[1] - this.range[0]
    const first = Math.min(Math.max(all[0], this.range[0] + share * width), all[1] - width)
    this.setRange([first, first + width])
  }

  redress() {
    for (const chart of this.charts) chart.rebuild()
  }

  destroy() {
    this.watch.disconnect()
    for (const chart of this.charts) chart.destroy()
    this.charts = []
  }
}

class Chart {
  // lines: [{ name, label, colour, width, dash, points, show }]; `floor` and `ceiling` bound the y axis.
  constructor(group, { title, lines, height, show = figure, axis = show, floor = null, ceiling = null, mark = null }) {
    this.group = group
    this.lines = lines
    this.height = height
    this.show = show
    this.axis = axis
    this.bounds = [floor, ceiling]
    this.isLog = false
    this.mark = mark
    this.data = {}
    this.values = lines.map(() => h("output", {}, "\u2013"))
    this.keys = lines.map((line, index) =>
      h("span", { class: "key" }, h("i", { class: `swatch ${line.dash ? "dashed" : ""} c-${line.colour}` }), line.label ? h("span", { class: "label" }, line.label) : null, this.values[index]))
    this.at = h("span", { class: "at" })
    this.holder = h("div", {
      class: "plot", tabIndex: 0, role: "group", "aria-roledescription": "chart", "aria-label": title, onkeydown: (event) => this.key(event),
    })
    this.holder.style.height = `${height}px`
    this.element = h("figure", { class: "chart" }, h("figcaption", {}, (this.heading = h("b", {}, title)), h("span", { class: "legend" }, this.keys), this.at), this.holder)
    this.plot = null
    this.title = title
  }

  setData(curves) {
    this.data = curves
    this.draw()
  }

  setTitle(title) {
    this.title = title
    put(this.heading, title)
    this.readout()
  }

  setMark(step) {
    this.mark = step
    this.plot?.redraw(false)
  }

  setLog(isLog) {
    this.isLog = isLog
    this.rebuild()
  }

  ends() {
    return this.lines.flatMap(({ name }) => ends(this.data[name]))
  }

  joined() {
    const tables = this.lines.map(({ name }) => this.data[name] ?? [[], []])
    const full = tables.map((table) => (table[0].length ? table : null))
    if (full.every((table) => table === null)) return [[], ...this.lines.map(() => [])]
    const joined = uPlot.join(full.filter((table) => table !== null))
    let next = 1
    return [joined[0], ...full.map((table) => (table === null ? joined[0].map(() => null) : joined[next++]))]
  }

  draw() {
    const data = this.joined()
    this.element.classList.toggle("empty", data[0].length === 0)
    this.lines.forEach(({ name }, index) => (this.keys[index].hidden = data[0].length > 0 && !this.data[name]?.[0].length))
    if (!this.plot) return this.build(data)
    this.plot.batch(() => {
      this.plot.setData(data, false)
      const [first, last] = this.group.range ?? this.group.whole()
      this.plot.setScale("x", { min: first, max: last > first ? last : first + 1 })
    })
    this.readout()
  }

  // The last values, or those under the cursor.
  readout() {
    if (!this.plot) return
    const index = this.plot.cursor.idx
    const isOver = index !== null && index !== undefined && this.plot.cursor.left >= 0
    this.lines.forEach((line, number) => {
      const ys = this.plot.data[number + 1] ?? []
      put(this.values[number], this.show(isOver ? near(ys, index) : lastOf(ys)))
    })
    put(this.at, isOver ? `step ${Math.round(this.plot.data[0][index]).toLocaleString("en")}` : "")
    const said = this.lines.map((line, number) => `${line.label} ${this.values[number].textContent}`).join(", ")
    this.holder.setAttribute("aria-label", `${this.title}: ${said}. Plus and minus zoom, arrows move, 0 shows all.`)
  }

  range(min, max) {
    let [low, high] = [min ?? 0, max ?? 1]
    if (this.isLog) return low > 0 ? [low * 0.95, high * 1.05] : [1e-6, Math.max(high, 1)]
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1
    low = this.bounds[0] !== null ? Math.min(this.bounds[0], low) : low - pad
    high = this.bounds[1] !== null ? Math.max(this.bounds[1], high) : high + pad
    return [low, high]
  }

  build(data = this.joined()) {
    const width = this.holder.clientWidth
    if (!width) return
    const axis = { stroke: colour("dim"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif", labelFont: "11px system-ui" }
    const [first, last] = this.group.range ?? this.group.whole()
    this.plot = new uPlot({
      width,
      height: this.height,
      padding: [8, (plot) => Math.max(10, 3.5 * count(Math.round(plot.scales.x.max ?? 0)).length), 0, 0], // half of the last figure
      legend: { show: false },
      cursor: {
        sync: { key: this.group.sync.key, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
        bind: { dblclick: () => () => this.group.setRange(null) },
      },
      scales: { x: { time: false, min: first, max: last > first ? last : first + 1, auto: false }, y: { distr: this.isLog ? 3 : 1, range: (plot, min, max) => this.range(min, max) } },
      axes: [
        { ...axis, size: 26, values: (plot, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) },
        { ...axis, size: 56, values: (plot, ticks) => ticks.map((tick) => (tick === null ? "" : this.axis(tick))), ...(this.height < 200 ? { space: 26 } : {}) },
      ],
      series: [{}, ...this.lines.map((line) => ({
        stroke: colour(line.colour),
        width: line.width ?? 1.5,
        dash: line.dash,
        spanGaps: true,
        points: line.points ? { show: true, size: line.points, fill: colour(line.colour), stroke: colour(line.colour) } : { show: (plot, index) => onlyOne(plot.data[index]), size: 5, fill: colour(line.colour) },
      }))],
      hooks: {
        setCursor: [() => this.readout()],
        setSelect: [(plot) => {
          if (plot.select.width < 4) return
          const range = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")]
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false)
          if (range[1] - range[0] >= 1) this.group.setRange(range)
        }],
        draw: [(plot) => this.drawMark(plot)],
      },
    }, data, this.holder)
    this.group.sync.sub(this.plot)
    this.readout()
  }

  drawMark(plot) {
    if (this.mark === null) return
    const x = Math.round(plot.valToPos(this.mark, "x", true))
    const { left, top, width, height } = plot.bbox
    if (x < left || x > left + width) return
    plot.ctx.save()
    plot.ctx.strokeStyle = colour("ink")
    plot.ctx.lineWidth = devicePixelRatio
    plot.ctx.beginPath()
    plot.ctx.moveTo(x, top)
    plot.ctx.lineTo(x, top + height)
    plot.ctx.stroke()
    plot.ctx.restore()
  }

  key(event) {
    const group = this.group
    const done = {
      "+": () => group.zoom(0.5), "=": () => group.zoom(0.5), "-": () => group.zoom(2),
      ArrowLeft: () => group.pan(-0.25), ArrowRight: () => group.pan(0.25),
      0: () => group.setRange(null), Escape: () => group.setRange(null),
    }[event.key]
    if (!done || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    done()
  }

  resize() {
    const width = this.holder.clientWidth
    if (!width) return
    if (!this.plot) this.build()
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height })
  }

  rebuild() {
    if (!this.plot) return
    this.destroy()
    this.build()
  }

  destroy() {
    if (!this.plot) return
    this.group.sync.unsub(this.plot)
    this.plot.destroy()
    this.plot = null
  }
}

const ends = (curve) => (curve?.[0].length ? [curve[0][0], curve[0][curve[0].length - 1]] : [])

// The first and the last step of some curves, null where there is none.
export function extent(curves) {
  const found = curves.flatMap(ends)
  return found.length ? [Math.min(...found), Math.max(...found)] : null
}

const onlyOne = (ys) => ys.filter((y) => y !== null && y !== undefined).length === 1

function lastOf(ys) {
  for (let index = ys.length - 1; index >= 0; index--) if (ys[index] !== null && ys[index] !== undefined) return ys[index]
  return null
}

// The value at a place, or the last one before it: curves are thinned each for itself.
function near(ys, index) {
  for (let place = index; place >= 0; place--) if (ys[place] !== null && ys[place] !== undefined) return ys[place]
  return null
}
