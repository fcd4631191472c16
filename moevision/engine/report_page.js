"use strict";
// Shows the rows of the report: only those in view are elements, so that tens of thousands cost no more than twenty.
// Everything from outside goes through textContent, setAttribute or a base64 picture; never through HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows.map(([name, output, status, seconds, reason, note, facts], index) =>
    ({ index, name, output, status, seconds, reason, note, facts }));
  const OVERSCAN = 6; // rows above and below those in view
  const COLUMN_PX = 118, GAP_PX = 15, NAME_PX = 220, MOST_CHOICES = 20;
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 5, useGrouping: false });
  const collator = new Intl.Collator("en", { numeric: true });

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  function said(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return number.format(value);
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (Array.isArray(value)) return value.map(said).join(", ");
    if (typeof value === "object") return Object.entries(value).map(([key, part]) => `${key} ${said(part)}`).join(", ");
    return value;
  }

  // ---- what can be sorted and filtered by -----------------------------------------------------------------------------
  const isPlain = (value) => value === null || typeof value !== "object";
  const keys = [
    { title: "name", of: (row) => row.name },
    { title: "status", of: (row) => row.status },
    { title: "time", of: (row) => (row.seconds > 0 ? row.seconds : null) },
    ...data.columns.map((title, at) => ({ title, at, of: (row) => row.facts[at] })),
  ];
  const valuesOf = (key) => [...new Set(rows.map(key.of).filter((value) => value !== null && value !== undefined))];
  for (const key of keys) key.values = valuesOf(key);
  // A column that says the same of every file is left to the details, as are lists of numbers.
  const columns = keys.slice(3).filter((key) => key.values.every(isPlain) && key.values.length > 1);
  const choosable = keys.slice(3).filter((key) =>
    key.values.length > 1 && key.values.length <= MOST_CHOICES && key.values.every((value) => typeof value === "string"));

  const state = { text: "", statuses: new Set(), choices: new Map(), key: null, descending: false };
  let shown = rows, first = 0, current = 0, thumbnails = null, fitting = columns;
  const haystacks = rows.map((row) => `${row.name}\n${row.output}\n${row.reason}`.toLowerCase());

  function compare(a, b) {
    if (a === null || a === undefined || b === null || b === undefined) return 0;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return collator.compare(said(a), said(b));
  }

  function choose() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.filter((row) =>
      (state.statuses.size === 0 || state.statuses.has(row.status)) &&
      words.every((word) => haystacks[row.index].includes(word)) &&
      [...state.choices].every(([key, value]) => key.of(row) === value));
    if (state.key) {
      const { of } = state.key, sign = state.descending ? -1 : 1;
      const isMissing = (row) => of(row) === null || of(row) === undefined;
      shown.sort((a, b) => isMissing(a) - isMissing(b) || sign * compare(of(a), of(b)) || a.index - b.index);
    }
    current = 0;
    count.textContent = shown.length === rows.length ? `${rows.length} files` : `${shown.length} of ${rows.length} files`;
    for (const row of [...body.children]) row.remove();
    layOut();
  }

  function sortBy(key) {
    state.descending = key !== null && state.key === key ? !state.descending : false;
    state.key = key;
    sorting.value = key ? String(keys.indexOf(key)) : "";
    direction.textContent = state.descending ? "descending" : "ascending";
    direction.disabled = !key;
    showHead();
    choose();
  }

  // ---- the tools above the rows ---------------------------------------------------------------------------------------
  const count = element("span", { class: "count", role: "status", "aria-live": "polite" });
  const search = element("input", {
    type: "search", placeholder: "name or reason", "aria-label": "Filter by words in name, output or reason",
    oninput: () => { state.text = search.value; choose(); },
  });
  const counts = new Map();
  for (const row of rows) counts.set(row.status, (counts.get(row.status) || 0) + 1);
  const statusButtons = [...counts].map(([status, times]) => {
    const button = element("button", {
      type: "button", "aria-pressed": "false", text: `${status} ${times}`,
      onclick: () => {
        if (!state.statuses.delete(status)) state.statuses.add(status);
        button.setAttribute("aria-pressed", state.statuses.has(status));
        choose();
      },
    });
    return button;
  });
  const choosers = choosable.map((key) => {
    const select = element("select", {
      onchange: () => {
        if (select.value === "") state.choices.delete(key);
        else state.choices.set(key, key.values[Number(select.value)]);
        choose();
      },
    }, element("option", { value: "", text: "any" }));
    key.values.forEach((value, at) => select.append(element("option", { value: at, text: value })));
    return element("label", {}, document.createTextNode(key.title), select);
  });
  const sorting = element("select", { onchange: () => sortBy(sorting.value === "" ? null : keys[Number(sorting.value)]) },
    element("option", { value: "", text: "order of the run" }));
  keys.forEach((key, at) => sorting.append(element("option", { value: at, text: key.title })));
  const direction = element("button", {
    type: "button", text: "ascending", disabled: "", "aria-label": "Turn the order round", onclick: () => sortBy(state.key),
  });
  const tools = element("div", { class: "tools", role: "search" }, search,
    ...(statusButtons.length > 1 ? statusButtons : []), ...choosers,
    element("label", {}, document.createTextNode("sort by"), sorting), direction, count);

  // ---- the table ------------------------------------------------------------------------------------------------------
  const head = element("div", { class: "row head", role: "row", "aria-rowindex": "1" });
  const body = element("div", { class: "body", role: "rowgroup", onkeydown: move, onclick: open });
  const table = element("div", { role: "grid", "aria-label": "Files", "aria-readonly": "true" },
    element("div", { role: "rowgroup", class: "headgroup" }, head), body);
  const empty = element("p", { class: "none", text: "No file matches.", hidden: "" });

  function showHead() {
    const title = (key) => {
      const order = state.key !== key ? "none" : state.descending ? "descending" : "ascending";
      return element("div", { class: "cell", role: "columnheader", "aria-sort": order },
        element("button", { type: "button", text: key.title, onclick: () => sortBy(key) }));
    };
    const before = element("div", { class: "cell note", role: "columnheader", text: data.pictures.join(", ") || "pictures" });
    head.replaceChildren(before, ...[...keys.slice(0, 3), ...fitting].map(title));
  }

  function pictures(row, size) {
    const line = thumbnails && thumbnails[row.index];
    if (!line) return [element("span", { class: "note", text: row.note || "loading" })];
    return line.split(" ").map((base64, at) => {
      const image = element("img", { alt: `${data.pictures[at] || "picture"} of ${row.name}`, decoding: "async" });
      image.src = "data:image/jpeg;base64," + base64;
      if (!size) return image;
      return element("figure", {}, image, element("figcaption", { text: data.pictures[at] || "" }));
    });
  }

  function makeRow(at) {
    const row = shown[at];
    const isBad = data.bad.includes(row.status);
    const name = element("div", { class: "cell name", role: "gridcell" },
      element("button", { type: "button", text: row.name, dir: "auto", tabindex: at === current ? "0" : "-1",
        "aria-haspopup": "dialog" }));
    if (row.reason) name.append(element("small", { class: isBad ? "reason" : "", text: row.reason, dir: "auto" }));
    const cell = (text, kind) => element("div", { class: `cell ${kind}`, role: "gridcell", text, dir: "auto" });
    const made = element("div", {
      class: row.note ? "row without" : "row", role: "row", "aria-rowindex": at + 2, "data-at": at,
    },
      element("div", { class: "cell thumbs", role: "gridcell" }, ...pictures(row, false)), name,
      cell(row.status, `status ${isBad ? "bad" : row.status === "done" ? "done" : ""}`),
      cell(row.seconds > 0 ? `${number.format(row.seconds)} s` : "", "time"),
      ...fitting.map((key) => cell(said(key.of(row)), "value")),
      element("div", { class: "facts", role: "gridcell",
        text: columns.filter((key) => said(key.of(row))).map((key) => `${key.title} ${said(key.of(row))}`).join(" · ") }));
    made.style.top = `${at * rowPx}px`;
    return made;
  }

  let rowPx = 124;
  function layOut() {
    rowPx = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    const shots = Math.max(1, data.pictures.length);
    const thumbPx = data.pictures.length ? Math.min(150, Math.max(70, (table.clientWidth * 0.4) / shots)) : 110;
    const picturesPx = shots * (thumbPx + 6);
    const left = table.clientWidth - picturesPx - NAME_PX - 2 * (86 + GAP_PX) - 2 * GAP_PX;
    fitting = columns.slice(0, Math.max(0, Math.floor(left / (COLUMN_PX + GAP_PX))));
    document.documentElement.style.setProperty("--thumb", `${thumbPx}px`);
    table.style.setProperty("--columns",
      `${picturesPx}px minmax(${NAME_PX - 60}px, 1fr) 86px 70px ` + fitting.map(() => `${COLUMN_PX}px `).join(""));
    table.style.setProperty("--tools", getComputedStyle(tools).position === "sticky" ? `${tools.offsetHeight}px` : "0px");
    table.setAttribute("aria-rowcount", shown.length + 1);
    table.setAttribute("aria-colcount", fitting.length + 4);
    body.style.height = `${shown.length * rowPx}px`;
    empty.hidden = shown.length > 0;
    showHead();
    body.replaceChildren();
    render();
  }

  function render() {
    const top = -body.getBoundingClientRect().top;
    first = Math.max(0, Math.floor(top / rowPx) - OVERSCAN);
    const last = Math.min(shown.length, Math.ceil((top + innerHeight) / rowPx) + OVERSCAN);
    const there = new Map();
    for (const row of [...body.children]) {
      const at = Number(row.dataset.at);
      // A row that has the focus stays, wherever it is: else Tab would begin again at the top.
      if ((at >= first && at < last) || row.contains(document.activeElement)) there.set(at, row);
      else row.remove();
    }
    let after = null;
    for (let at = last - 1; at >= first; at--) {
      const row = there.get(at) || makeRow(at);
      if (!there.has(at)) body.insertBefore(row, after);
      after = row;
    }
    if (!body.querySelector('[tabindex="0"]') && body.firstChild) setCurrent(Number(body.firstChild.dataset.at));
  }

  const rowAt = (at) => body.querySelector(`[data-at="${at}"]`);
  function setCurrent(at) {
    for (const button of body.querySelectorAll('.name button[tabindex="0"]')) button.tabIndex = -1;
    current = at;
    const row = rowAt(at);
    if (row) row.querySelector("button").tabIndex = 0;
  }

  function goTo(at) {
    at = Math.min(shown.length - 1, Math.max(0, at));
    if (at < 0) return;
    const top = at * rowPx + body.getBoundingClientRect().top;
    const covered = tools.offsetHeight + head.offsetHeight;
    if (top < covered) scrollBy(0, top - covered);
    else if (top + rowPx > innerHeight) scrollBy(0, top + rowPx - innerHeight);
    render();
    setCurrent(at);
    rowAt(at).querySelector("button").focus({ preventScroll: true });
  }

  function move(event) {
    const page = Math.max(1, Math.floor(innerHeight / rowPx) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    goTo(Number(event.target.closest(".row").dataset.at) + steps[event.key]);
  }

  // ---- one file, large ------------------------------------------------------------------------------------------------
  const dialog = element("dialog", { "aria-labelledby": "title", onclose: () => goTo(current), onkeydown: (event) => {
    if (event.key === "ArrowRight") show(current + 1);
    else if (event.key === "ArrowLeft") show(current - 1);
  } });

  function open(event) {
    const row = event.target.closest(".row");
    if (!row || (event.detail > 0 && String(getSelection()))) return; // a key, or a click that selects no text
    show(Number(row.dataset.at));
    if (!dialog.open) dialog.showModal();
  }

  function show(at) {
    if (at < 0 || at >= shown.length) return;
    setCurrent(at);
    const row = shown[at];
    const facts = element("dl", { class: "about" });
    const said_ = [["output", row.output], ["status", row.status], ["reason", row.reason],
      ["time", row.seconds > 0 ? `${said(row.seconds)} s` : ""],
      ...keys.slice(3).map((key) => [key.title, said(key.of(row))])];
    for (const [title, text] of said_) {
      if (text !== "") facts.append(element("div", {}, element("dt", { text: title }), element("dd", { text, dir: "auto" })));
    }
    const button = (text, label, onclick) => element("button", { type: "button", text, "aria-label": label, onclick });
    dialog.replaceChildren(
      element("div", { class: "bar" }, element("h2", { id: "title", text: row.name, dir: "auto" }),
        button("\u2190", "Previous file", () => show(current - 1)), button("\u2192", "Next file", () => show(current + 1)),
        element("button", { type: "button", text: "Close", autofocus: "", onclick: () => dialog.close() })),
      element("div", { class: "large" }, ...pictures(row, true)), facts);
    if (dialog.open) dialog.querySelector("[autofocus]").focus();
  }

  // ---- begin ----------------------------------------------------------------------------------------------------------
  document.getElementById("files").replaceChildren(tools, table, empty, dialog);
  choose();
  let isWaiting = false;
  addEventListener("scroll", () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; render(); });
  }, { passive: true });
  addEventListener("resize", layOut);
  addEventListener("DOMContentLoaded", () => {
    thumbnails = document.getElementById("thumbnails").textContent.split("\n");
    layOut();
  });
})();
