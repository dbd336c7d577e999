"use strict";
// Keeps the page as the server would show it now, without moving the reader: what is open, focused or scrolled to stays so.

const EVERY = 2000; // milliseconds
const main = document.getElementById("main");
const connection = document.getElementById("connection");
let last = null; // the HTML of the last answer
let asking = false;

async function page(address) {
  const answer = await fetch(address, { headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.text();
}

function parsed(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

async function update() {
  if (asking || document.hidden) return;
  asking = true;
  const address = location.href;
  try {
    const html = await page(address);
    if (html !== last && address === location.href) {
      last = html;
      const fresh = parsed(html);
      document.title = fresh.title;
      morph(main, fresh.getElementById("main"));
    }
    connection.textContent = "";
  } catch {
    connection.textContent = "no connection to mmc view";
  } finally {
    asking = false;
  }
}

// Makes `old` equal to `fresh`, keeping every node that is there already. Nodes with an id are told apart by it.
function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  attributes(old, fresh);
  if (old.dataset.loaded) return;
  const known = new Map([...old.children].filter((node) => node.id).map((node) => [node.id, node]));
  let next = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const match = (wanted.id && known.get(wanted.id)) || (next && alike(next, wanted) ? next : null);
    if (match === null || match === undefined) {
      old.insertBefore(document.importNode(wanted, true), next);
      continue;
    }
    if (match === next) next = next.nextSibling;
    else old.insertBefore(match, next);
    morph(match, wanted);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function alike(a, b) {
  return a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

// `open` and what is typed or chosen belong to the reader.
function attributes(old, fresh) {
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    const readers = name === "open" || name === "data-loaded";
    if (!readers && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
}

// A line of a list brings its inside when it is opened.
document.addEventListener(
  "toggle",
  async (event) => {
    const line = event.target;
    const inside = line.open && line.dataset.src ? line.querySelector(".inside") : null;
    if (!inside || inside.dataset.loaded) return;
    try {
      const part = parsed(await page(line.dataset.src)).querySelector("[data-part]");
      inside.replaceChildren(...[...part.childNodes].map((node) => document.importNode(node, true)));
      inside.dataset.loaded = "yes";
    } catch {
      connection.textContent = "no connection to mmc view";
    }
  },
  true,
);

// A filter that is changed is applied at once, in place.
function applied(form) {
  const chosen = [...new FormData(form)].filter(([, value]) => value !== "");
  const query = new URLSearchParams(chosen).toString();
  history.replaceState(null, "", location.pathname + (query ? "?" + query : ""));
  update();
}
document.addEventListener("change", (event) => {
  const form = event.target.form;
  if (form && "live" in form.dataset) applied(form);
});
document.addEventListener("submit", (event) => {
  if (!("live" in event.target.dataset)) return;
  event.preventDefault();
  applied(event.target);
});

setInterval(update, EVERY);
document.addEventListener("visibilitychange", update);
