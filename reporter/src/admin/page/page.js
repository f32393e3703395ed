// Puts what /events brings into the page. Without it the page renews itself.
"use strict";
const state = document.getElementById("state");

// Rows stay what they are, so that a number in one can be selected: only cells that have changed are put in.
const mergeRows = (part, next) => {
  const rows = [...next.children];
  const ids = new Set(rows.map((row) => row.id));
  for (const row of [...part.children]) if (!ids.has(row.id)) row.remove();
  rows.forEach((row, n) => {
    const known = document.getElementById(row.id);
    if (!known) return part.insertBefore(row, part.children[n] ?? null);
    [...row.children].forEach((cell, at) => {
      if (known.children[at].outerHTML !== cell.outerHTML) known.children[at].replaceWith(cell);
    });
  });
};

// The bar whose details are shown, by its place; none by default.
let bar = null;
const tellBar = () => {
  const bars = document.querySelectorAll("#bars g");
  if (bar === null || bars.length === 0) return;
  bar = Math.min(Math.max(bar, 0), bars.length - 1);
  document.getElementById("bar").textContent = bars[bar].querySelector("title").textContent;
};
const chart = document.getElementById("chart");
document.getElementById("bar").textContent = "Point at a bar, or move through them by the arrow keys";
chart.addEventListener("pointerover", ({ target }) => {
  const found = [...document.querySelectorAll("#bars g")].indexOf(target.closest("g"));
  if (found >= 0) { bar = found; tellBar(); }
});
chart.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  bar = (bar ?? document.querySelectorAll("#bars g").length) + step;
  tellBar();
});

let updated = Date.now();
const show = ({ data }) => {
  const fresh = new DOMParser().parseFromString(data, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (!next || next.innerHTML === part.innerHTML) continue;
    if ("rows" in part.dataset) { mergeRows(part, next); continue; }
    const hadFocus = part.contains(document.activeElement);
    part.replaceChildren(...next.childNodes);
    if (hadFocus) part.querySelector("[tabindex]")?.focus();
  }
  tellBar();
  const current = document.getElementById("current");
  document.title = current ? `${current.textContent} · ${document.body.dataset.name}` : document.body.dataset.name;
  updated = Date.now();
  document.body.classList.remove("old");
  state.className = "live";
  state.textContent = "Live";
};
let events;
const listen = () => {
  events = new EventSource("events" + location.search);
  events.onmessage = show;
};
listen();
// Also where the connection is there, and nothing comes.
setInterval(() => {
  if (Date.now() - updated < 5000) return;
  document.body.classList.add("old");
  state.className = "lost";
  state.textContent = `No update since ${new Date(updated).toLocaleTimeString()}`;
  // Browsers give up for good where a proxy has answered in the reporter's place.
  if (events.readyState === EventSource.CLOSED) listen();
}, 1000);
