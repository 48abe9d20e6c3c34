"use strict";
// Sorts tables, shows one sample grid at a time, and draws charts. The page is readable without it.

const numberOf = (text) => {
  const number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? Infinity : number; // such as "never" and "–"
};

const isSmaller = (one, other) => (one < other ? -1 : one > other ? 1 : 0);

function sortBy(head, column) {
  const table = head.closest("table");
  const order = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.ariaSort = order > 0 ? "ascending" : "descending";
  const keyOf = (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent;
    return head.classList.contains("number") ? numberOf(text) : text;
  };
  const rows = Array.from(table.tBodies[0].rows, (row) => [keyOf(row), row]);
  rows.sort(([one], [other]) => order * isSmaller(one, other));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "Sort";
    button.addEventListener("click", () => sortBy(head, column));
    head.append(button);
  });
}

for (const slides of document.querySelectorAll(".slides")) {
  const figures = [...slides.querySelectorAll("figure")];
  const input = slides.querySelector("input");
  if (figures.length < 2) continue;
  const show = () =>
    figures.forEach((figure, n) => figure.classList.toggle("is-shown", n === Number(input.value)));
  input.addEventListener("input", show);
  input.value = figures.length - 1; // a browser may restore another position
  show();
  slides.classList.add("is-live");
}

document.querySelectorAll(".chart").forEach((chart, n) => {
  const data = chart.querySelector("script");
  if (!data || typeof Bokeh === "undefined") return;
  const live = chart.querySelector(".live");
  const target = live.appendChild(document.createElement("div"));
  target.id = `chart-${n}`;
  chart.classList.add("is-live"); // a chart takes its width from the page, so it must be visible
  Bokeh.embed
    .embed_item(JSON.parse(data.textContent), target.id)
    .catch(() => chart.classList.remove("is-live"));
});
