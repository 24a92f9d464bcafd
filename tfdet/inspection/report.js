"use strict";

// The table. The rows of a <tbody> belong together: the figures of the first one say where they all go.
const table = document.querySelector("table.figures");
const headings = [...table.tHead.rows[0].cells];

function compare(a, b) {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b, undefined, { numeric: true }) : numbers[0] - numbers[1];
}

// Names go up first, figures down; a second press turns it around. What has no figure is always last.
headings.forEach((heading, column) =>
  heading.querySelector("button").addEventListener("click", () => {
    const first = column ? "descending" : "ascending";
    const other = column ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    for (const each of headings) each.setAttribute("aria-sort", each === heading ? order : "none");
    const value = (body) => body.rows[0].cells[column].dataset.value;
    const known = [...table.tBodies].filter((body) => value(body) !== undefined);
    const unknown = [...table.tBodies].filter((body) => value(body) === undefined);
    known.sort((a, b) => compare(value(a), value(b)) * (order === "ascending" ? 1 : -1));
    table.append(...known, ...unknown);
  })
);

// Choosing an object marks everything that carries its number, in all panels of its picture; undefined lets go.
function choose(picture, object) {
  if (object === undefined) delete picture.dataset.chosen;
  else picture.dataset.chosen = object;
  for (const part of picture.querySelectorAll("[data-object]"))
    part.classList.toggle("chosen", part.dataset.object === object);
  for (const button of picture.querySelectorAll(".objects button"))
    button.setAttribute("aria-pressed", button.dataset.object === object);
  const button = picture.querySelector("button.chosen");
  if (button) takesTab(button);
  picture.querySelector(".chosen-text").textContent = button
    ? `Shown: samples of object ${button.dataset.name}. Esc shows all.`
    : "";
  for (const line of picture.querySelectorAll(".panel .of-object")) {
    line.textContent = button ? told(line.closest(".panel")) : "";
    line.title = line.textContent;
  }
}

// What a panel has of the chosen object.
function told(panel) {
  const counts = new Map();
  const texts = new Set();
  for (const { dataset } of panel.querySelectorAll(".sample.chosen")) {
    counts.set(dataset.kind, (counts.get(dataset.kind) ?? 0) + Number(dataset.count));
    for (const text of dataset.texts.split(", ")) if (text) texts.add(text);
  }
  const numbers = [...counts].map(([kind, count]) => `${count} ${kind}`).join(", ");
  const samples = numbers + (texts.size ? `: ${[...texts].join(", ")}` : "");
  const lost = panel.querySelector(".lost.chosen");
  const parts = [lost ? `lost: ${lost.dataset.reason}` : "", samples].filter(Boolean);
  return parts.join("; ") || "no sample of it is drawn";
}

// Only one button of a row of objects is a stop of the Tab key; the arrows go on from there.
function takesTab(button) {
  for (const other of button.parentElement.children) other.tabIndex = other === button ? 0 : -1;
}

for (const picture of document.querySelectorAll(".picture")) {
  picture.addEventListener("click", ({ target }) => {
    const object = target.closest("[data-object]")?.dataset.object;
    if (object !== undefined) choose(picture, picture.dataset.chosen === object ? undefined : object);
    const enlarge = target.closest(".enlarge");
    if (enlarge) enlarge.setAttribute("aria-pressed", enlarge.closest("figure").classList.toggle("large"));
  });
  picture.addEventListener("change", ({ target }) => {
    const panel = target.closest("figure");
    if (target.matches("select"))
      for (const map of panel.querySelectorAll(".heatmap"))
        map.classList.toggle("map-off", !["", map.dataset.map].includes(target.value));
    else
      for (const group of panel.querySelectorAll(`.sample[data-level="${target.dataset.level}"]`))
        group.classList.toggle("level-off", !target.checked);
  });
  picture.querySelector(".objects").addEventListener("keydown", (event) => {
    const buttons = [...event.currentTarget.children];
    const here = buttons.indexOf(event.target);
    const [next, previous] = [(here + 1) % buttons.length, here - 1];
    const keys = { ArrowRight: next, ArrowDown: next, ArrowLeft: previous, ArrowUp: previous, Home: 0, End: -1 };
    if (!(event.key in keys)) return;
    event.preventDefault();
    const button = buttons.at(keys[event.key]);
    takesTab(button);
    button.focus();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const picture of document.querySelectorAll("[data-chosen]")) choose(picture);
});

document.querySelector(".legend")?.addEventListener("change", ({ target }) => {
  for (const layer of document.querySelectorAll(`.picture .layer.${target.dataset.kind}`))
    layer.classList.toggle("kind-off", !target.checked);
});

// The link of a lost object leads to its panel and chooses the object there.
document.querySelector("#lost").addEventListener("click", ({ target }) => {
  const link = target.closest("a[data-object]");
  if (link) choose(document.querySelector(link.hash).closest(".picture"), link.dataset.object);
});
