// Elements from values. Everything that comes from a run passes through textContent: it is never read as HTML.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue
    if (name === "class") element.className = value
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name in element && name !== "list" && name !== "form") element[name] = value
    else element.setAttribute(name, value === true ? "" : value)
  }
  fill(element, children)
  return element
}

export function fill(element, children) {
  element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

// Writes only what has changed, so that nothing flickers and a selection stays.
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text
}

// Directions and controls written out, line ends kept: what is there is what is seen.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g
export function visible(text) {
  return text.replace(HIDDEN, (one) => "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"))
}

export function code(text) {
  const shown = h("code", {}, text)
  const button = h("button", { type: "button", class: "quiet copy", "aria-label": `Copy ${text}` }, "Copy")
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text)
      button.textContent = "Copied"
    } catch {
      getSelection().selectAllChildren(shown)
      button.textContent = "Selected"
    }
    setTimeout(() => (button.textContent = "Copy"), 1500)
  })
  return h("span", { class: "command" }, shown, button)
}
