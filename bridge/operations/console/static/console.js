/* Draws the charts of the Flow page, and reads the page anew while somebody looks at it. */
"use strict";
(() => {
  const EVERY_MS = 10_000;
  const HEIGHT = 168, LEGEND = 26;
  // Steps of an axis on which there are no halves.
  const WHOLE = Array.from({ length: 10 }, (_, zeros) => [1, 2, 5].map((step) => step * 10 ** zeros)).flat();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let plots = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A minute beside which none was counted would not be seen in a line.
  const alone = (values) => values.filter((value) => value !== null).length === 1;

  function draw() {
    plots.forEach((plot) => plot.destroy());
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    plots = [...document.querySelectorAll("[data-chart]")].map((place) => {
      const chart = JSON.parse(place.dataset.chart);
      const series = chart.labels.map((label, at) => {
        const stroke = colour(label === "failed" ? "--failed" : `--series-${at + 1}`);
        const line = { label, stroke, width: 2, fill: at === 0 ? `${stroke}22` : undefined, points: { show: alone(chart.values[at]) } };
        return chart.bars ? { ...line, width: 0, fill: stroke, paths: uPlot.paths.bars({ size: [0.7, 12] }) } : line;
      });
      const options = {
        width: place.clientWidth,
        height: chart.labels.length > 1 ? HEIGHT : HEIGHT + LEGEND,
        cursor: { y: false },
        legend: { live: false, show: chart.labels.length > 1 },
        padding: [8, 16, 0, 0],  // room for half of the last minute's name
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        scales: { x: { range: (_plot, low, high) => [low - 30, high + 30] }, y: { range: (_plot, _low, high) => [0, high > chart.top ? high * 1.1 : chart.top] } },
        axes: [
          { ...axis, values: "{HH}:{mm}", space: 60, size: 28 },
          { ...axis, size: 52, ...(chart.whole && { incrs: WHOLE }), values: (_plot, ticks) => ticks.map((tick) => tick.toLocaleString("en")) },
        ],
        series: [{ label: "UTC", value: "{HH}:{mm}" }, ...series],
      };
      return new uPlot(options, [chart.times, ...chart.values], place);
    });
  }

  async function refresh() {
    const main = document.querySelector("main");
    const busy = main.querySelector("details[open]") || (main !== document.activeElement && main.contains(document.activeElement));
    if (document.hidden || busy) return;
    const answer = await fetch("/", { credentials: "same-origin", redirect: "error" }).catch(() => null);
    if (!answer || !answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    plots.forEach((plot) => plot.destroy());
    plots = [];
    main.replaceChildren(...page.querySelector("main").childNodes);
    draw();
  }

  draw();
  setInterval(refresh, EVERY_MS);
  dark.addEventListener("change", draw);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
})();
