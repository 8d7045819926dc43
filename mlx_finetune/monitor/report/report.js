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
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
