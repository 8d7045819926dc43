"use strict";
document.documentElement.classList.add("js");
for (const time of document.querySelectorAll("time[datetime]")) {
  const when = new Date(time.dateTime);
  if (!isNaN(when)) {
    time.title = time.textContent;
    time.textContent = when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}
const slider = document.getElementById("frame-slider");
if (slider) {
  const steps = slider.dataset.steps.split(",");
  const output = document.querySelector("output[for=frame-slider]");
  const chart = document.querySelector("#curves .chart");
  const show = () => {
    const place = slider.value;
    for (const frame of document.querySelectorAll(".frame[data-frame]")) {
      frame.classList.toggle("now", frame.dataset.frame === place);
    }
    output.textContent = "step " + Number(steps[place]).toLocaleString() + " (" + place + " of " + (steps.length - 1) + ")";
    slider.setAttribute("aria-valuetext", output.textContent);
    if (chart) {
      const from = Number(chart.dataset.from), to = Number(chart.dataset.to);
      const x = (1000 * (steps[place] - from)) / (to - from);
      chart.querySelector(".cursor").setAttribute("d", "M" + x.toFixed(1) + " 0V300");
    }
  };
  slider.parentElement.hidden = false;
  slider.addEventListener("input", show);
  show();
}
const written = (value, unit) => {
  if (unit !== "B") return Number(value.toPrecision(4)).toLocaleString() + (unit ? " " + unit : "");
  const place = [12, 9, 6, 3].find((power) => Math.abs(value) >= 10 ** power) || 0;
  return (value / 10 ** place).toFixed(place ? 1 : 0) + " " + { 12: "TB", 9: "GB", 6: "MB", 3: "kB", 0: "B" }[place];
};
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), readout = chart.querySelector(".readout");
  const { from, to, low, high, log, unit, across = "step" } = chart.dataset;
  const lines = [...svg.querySelectorAll(".line")].map((path) => ({
    name: path.dataset.name,
    points: path.getAttribute("d").slice(1).split("L").map((point) => point.split(" ").map(Number)),
  }));
  const value = (y) => {
    const found = Number(low) + (1 - y / 300) * (high - low);
    return log === undefined ? found : 10 ** found;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (1000 * (event.clientX - box.left)) / box.width;
    let step = null;
    const parts = lines.map(({ name, points }) => {
      const [px, py] = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      step ??= Math.round(Number(from) + (px / 1000) * (to - from));
      return (name ? name + " " : "") + written(value(py), unit);
    });
    readout.textContent = across + " " + step.toLocaleString() + ": " + parts.join(", ");
  });
  svg.addEventListener("pointerleave", () => (readout.textContent = ""));
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
