// Puts what /events brings into the page. Without it the page renews itself.
"use strict";
const state = document.getElementById("state");
const events = new EventSource("events");
events.onmessage = ({ data }) => {
  const fresh = new DOMParser().parseFromString(data, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (next && next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
  }
  state.className = "live";
  state.textContent = "Live";
};
events.onerror = () => {
  state.className = "lost";
  state.textContent = "Connection lost; trying again";
};
