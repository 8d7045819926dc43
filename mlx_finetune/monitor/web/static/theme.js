// Before the first paint, so that nothing flashes: the theme that was chosen, or the system's.
(() => {
  let theme = null
  try {
    theme = localStorage.getItem("mlxft-theme")
  } catch {
    /* a browser that keeps nothing */
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme
})()
