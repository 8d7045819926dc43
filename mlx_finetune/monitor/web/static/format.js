// Numbers as a person reads them, in the words of mlxft/units.py.

export function bytes(value) {
  if (value === null || value === undefined) return "\u2013"
  for (const [name, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (Math.abs(value) >= size) return `${(value / size).toFixed(1)} ${name}`
  }
  return `${Math.round(value)} B`
}

export function seconds(value) {
  if (value === null || value === undefined) return "\u2013"
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`
  const minutes = Math.floor(Math.round(value) / 60)
  const two = (number) => String(number).padStart(2, "0")
  if (minutes < 60) return `${minutes}m ${two(Math.round(value) % 60)}s`
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? `${hours}h ${two(minutes % 60)}m` : `${Math.floor(hours / 24)}d ${hours % 24}h`
}

export function clock(time) {
  if (!time) return "\u2013"
  const date = new Date(time * 1000)
  const text = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })
  const days = Math.round((new Date(date).setHours(0, 0, 0, 0) - new Date().setHours(0, 0, 0, 0)) / 864e5)
  if (days === 0) return text
  const within = Math.abs(days) < 6 ? { weekday: "short" } : { day: "numeric", month: "short" }
  return `${date.toLocaleDateString([], within)} ${text}`
}

export function count(value) {
  return value === null || value === undefined ? "\u2013" : Math.round(value).toLocaleString("en")
}

export function short(value) {
  for (const [name, size] of [["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${(value / size).toFixed(1)}${name}`
  }
  return String(Math.round(value))
}

export function loss(value) {
  return value === null || value === undefined ? "\u2013" : value.toFixed(4)
}

// Three figures for an axis or a readout, without the zeros nobody needs.
export function figure(value) {
  if (value === null || value === undefined) return "\u2013"
  const size = Math.abs(value)
  if (size === 0) return "0"
  if (size < 0.001 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e")
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)))
}

export const percent = (value) => (value === null || value === undefined ? "\u2013" : `${Math.round(value)} %`)

export function capital(word) {
  return word[0].toUpperCase() + word.slice(1)
}
