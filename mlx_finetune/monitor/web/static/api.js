// Asking the server. The token came with the address, behind a # that browsers send to nobody; it travels in a header,
// so that no other page can use it, and is kept for this address alone.

const KEY = "mlxft-token"
let token = ""

export class Refused extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

// From the address: the token itself, or a ticket that is good for one change; else the one that was kept.
export async function takeToken() {
  const given = /[#&](token|ticket)=([\w.-]+)/.exec(location.hash)
  if (given) history.replaceState(null, "", location.pathname)
  if (given?.[1] === "token") remember(given[2])
  else if (given) remember((await post("/api/ticket", { ticket: given[2] }).catch(() => ({}))).token ?? kept())
  else token = kept()
  return token !== ""
}

function kept() {
  try {
    return localStorage.getItem(KEY) ?? ""
  } catch {
    return token
  }
}

export function remember(text) {
  token = text.trim()
  try {
    if (token) localStorage.setItem(KEY, token)
    else localStorage.removeItem(KEY)
  } catch {
    /* kept for this page only */
  }
}

const headers = (more) => ({ authorization: `Bearer ${token}`, ...more })

export async function get(path, signal) {
  return read(await fetch(path, { headers: headers(), cache: "no-store", signal }))
}

export async function post(path, body) {
  const given = { method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body) }
  return read(await fetch(path, given))
}

async function read(answer) {
  const value = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Refused(answer.status, value.error?.message ?? `the server answered ${answer.status}`)
  return value
}

export const about = (name, what) => `/api/runs/${encodeURIComponent(name)}/${what}`

const SILENCE = 25_000 // the server speaks every 8 seconds

// Follows one run until `stop` is called: asks again when the connection is lost, from where it was.
export function follow(name, { from, onNews, onState }) {
  let last = from
  let isStopped = false
  let abort = null
  let wake = null

  const wait = (milliseconds) => new Promise((done) => {
    wake = done
    setTimeout(done, milliseconds)
  })

  async function once() {
    abort = new AbortController()
    let timer = setTimeout(() => abort.abort(), SILENCE)
    try {
      const answer = await fetch(about(name, "events"), {
        headers: headers({ "last-event-id": last ?? "", accept: "text/event-stream" }),
        cache: "no-store",
        signal: abort.signal,
      })
      if (!answer.ok) await read(answer)
      onState("here")
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      let rest = ""
      for (;;) {
        const { value, done } = await reader.read()
        if (done) return
        clearTimeout(timer)
        timer = setTimeout(() => abort.abort(), SILENCE)
        const parts = (rest + value).split("\n\n")
        rest = parts.pop()
        for (const part of parts) await take(part)
      }
    } finally {
      clearTimeout(timer)
    }
  }

  async function take(part) {
    const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n")
    if (!data || part.startsWith("event: end") || isStopped) return
    const news = JSON.parse(data)
    await onNews(news)
    last = news.id
  }

  async function run() {
    for (let tries = 0; !isStopped; tries++) {
      try {
        await once()
        tries = 0
      } catch (error) {
        if (isStopped) return
        if (error instanceof Refused && [401, 404, 409].includes(error.status)) return onState("refused", error)
        if (error instanceof Refused) tries = Math.max(tries, 2)
      }
      if (isStopped) return
      onState("gone")
      await wait(Math.min(5000, 500 * 2 ** Math.min(tries, 4)))
    }
  }

  const again = () => document.visibilityState === "visible" && wake?.()
  document.addEventListener("visibilitychange", again)
  window.addEventListener("online", again)
  run()
  return () => {
    isStopped = true
    document.removeEventListener("visibilitychange", again)
    window.removeEventListener("online", again)
    abort?.abort()
    wake?.()
  }
}
