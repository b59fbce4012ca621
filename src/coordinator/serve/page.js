// Worst first: the order of the counts and of the list. No state is told by its color alone.
const STATES = new Map(Object.entries({
  lost: "⊘", failed: "✕", degraded: "◐", draining: "▼", undraining: "▲", held: "■", drained: "○", unknown: "?", undrained: "●",
}));
const RANK = new Map([...STATES.keys()].map((state, rank) => [state, rank]));
const PROBLEMS = ["lost", "failed", "degraded"];
const UNITS = new Map(Object.entries({
  failed: ["✕", "bad"], activating: ["↻", "busy"],
  deactivating: ["↻", "busy"], reloading: ["↻", "busy"],
  active: ["●", "good"], inactive: ["○", ""],
}));
const MOST_PARTS = 200;
const MOST_ENTRIES = 200;
// The server says "beat" after 15 s in which nothing happens. After this long without a word the connection is dead, even if
// nobody closed it.
const SILENCE_MS = 40_000;
// The first thing that it says is the whole fleet, and may take its time.
const FIRST_MS = 300_000;
const PATIENCE_MS = 15_000;

const $ = (id) => document.getElementById(id);
const collator = new Intl.Collator("en", { numeric: true });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const table = $("hosts");

const views = new Map();
const dirty = new Set();
const moved = new Set();
const pressed = new Set();
let history = [];
let coordinator = null;
let skew = 0;
let token = null;

// Small helpers

function clone(name) {
  const root = $(name).content.firstElementChild.cloneNode(true);
  return { root, refs: Object.fromEntries([...root.querySelectorAll("[data-ref]")].map((node) => [node.dataset.ref, node])) };
}

/** Writes into the text node that is there, and only what differs: a selection elsewhere in the row stays. */
function text(node, value) {
  value = String(value ?? "");
  const inside = node.firstChild;
  if (!inside) { if (value) node.textContent = value; }
  else if (!value) node.textContent = "";
  else if (inside.data !== value) inside.data = value;
}

function data(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

function hide(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

const pools = new WeakMap();

/** Makes the children of `parent` those of `items`; what was there for the same key stays, with its focus and selection. */
function keyed(parent, items, keyOf, template, patch) {
  const old = pools.get(parent) ?? new Map();
  const kept = new Map();
  for (const item of items) {
    let key = keyOf(item);
    while (kept.has(key)) key += "\0"; // Names may repeat.
    const part = old.get(key) ?? clone(template);
    old.delete(key);
    kept.set(key, part);
    patch(part.refs, item, part.root);
  }
  for (const part of old.values()) part.root.remove();
  let cursor = parent.firstElementChild;
  for (const { root } of kept.values()) {
    if (root === cursor) cursor = cursor.nextElementSibling;
    else parent.insertBefore(root, cursor);
  }
  pools.set(parent, kept);
}

const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

// Times, by the clock of the server: the client's may be wrong

const now = () => Date.now() + skew;
const instants = new WeakMap();

function ago(ms) {
  const seconds = Math.floor((now() - ms) / 1000);
  const far = Math.abs(seconds);
  const shown = far < 60 ? `${far - (far % 5)} s` : far < 3600 ? `${Math.floor(far / 60)} min`
    : far < 172_800 ? `${Math.floor(far / 3600)} h` : `${Math.floor(far / 86_400)} days`;
  return far < 10 ? "just now" : seconds < 0 ? `in ${shown}` : `${shown} ago`;
}

function lasted(ms) {
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const isInstant = (ms) => typeof ms === "number" && Math.abs(ms) <= 8.64e15;

function time(node, ms) {
  if (!isInstant(ms)) {
    instants.delete(node);
    text(node, "");
    return;
  }
  if (instants.get(node) !== ms) {
    instants.set(node, ms);
    node.dateTime = new Date(ms).toISOString();
    node.title = absolute.format(ms);
  }
  text(node, ago(ms));
}

// What is known about a host

const problemOf = (view) => PROBLEMS.includes(view.shown);
const changing = (unit) => UNITS.get(unit.state)?.[1] === "busy";
const unitRank = (unit) => (unit.state === "failed" ? 0 : changing(unit) ? 1 : 2);

function shownState(host) {
  if (host.link !== "open") return "lost";
  return host.state !== "lost" && STATES.has(host.state) ? host.state : "unknown";
}

function unitCounts(host) {
  const counts = new Map([...UNITS.keys()].map((state) => [state, 0]));
  for (const unit of host.units) counts.set(unit.state, (counts.get(unit.state) ?? 0) + 1);
  const failed = counts.get("failed");
  counts.delete("failed");
  const others = [...counts].filter(([, n]) => n).map(([state, n]) => `${n} ${state}`);
  if (host.units_omitted) others.push(`${host.units_omitted} not listed`);
  return [failed ? `✕ ${failed} failed${others.length ? "," : ""}` : "", others.join(", ") || (failed ? "" : "none")];
}

function commandText(command) {
  if (!command) return "none";
  return `${command.action}, ${{ ok: "done", error: "failed" }[command.status] ?? "under way"}`;
}

function facts(host) {
  const known = (value) => value ?? "not known";
  const command = host.last_command;
  const took = command && command.status !== null ? `took ${lasted(command.elapsed_ms)}` : "";
  const told = [commandText(command), took, command?.by && `by ${command.by}`, command?.message].filter(Boolean).join(" · ");
  return [
    // The row shows two lines of it.
    ...(host.name.length > 30 ? [["Name", host.name, null, true]] : []),
    ["Wanted", known(host.standing), null, true],
    ["Last command", told, command?.at_ms, true],
    ["Address", known(host.address)],
    ["Link", `${host.link}, changed`, host.link_since_ms],
    ["Last heard", host.seen_ms === null ? "never" : "", host.seen_ms],
    ["Wire", known(host.wire)],
    ["Guardian", known(host.guardian_version)],
    ["Generation", known(host.generation)],
    ["Target", host.target === null ? "not known" : `${host.target}: ${known(host.target_state)}`],
  ];
}

// Rows

let serial = 0;

function addHost(host) {
  const { root, refs } = clone("host");
  const view = { host, root, refs, shown: "", rank: -1, words: "", details: null };
  refs.row.dataset.host = host.name;
  text(refs.name, host.name);
  root.view = view;
  views.set(host.name, view);
  return view;
}

function setHost(host) {
  const view = views.get(host.name) ?? addHost(host);
  view.host = host;
  dirty.add(view);
}

function patchRow(view) {
  const { host, refs } = view;
  if (!view.root.isConnected) table.append(view.root);
  const shown = shownState(host);
  if (shown !== view.shown) {
    if (view.shown && !calm.matches) {
      refs.row.animate([{ backgroundColor: "rgb(128 160 220 / .2)" }, { backgroundColor: "transparent" }], 1500);
    }
    view.shown = shown;
    data(refs.badge, "shown", shown);
    text(refs.symbol, STATES.get(shown));
    text(refs.word, shown);
  }
  data(refs.row, "state", host.state);
  data(refs.row, "link", host.link);
  const rank = RANK.get(shown);
  if (rank !== view.rank) {
    view.rank = rank;
    moved.add(view);
  }
  view.words = [host.name, host.address, host.standing].join("\n").toLowerCase();
  text(refs.address, host.address);
  const lost = host.link !== "open";
  const before = host.seen_ms === null ? "never heard" : `was ${host.state}`;
  text(refs.was, !lost ? "" : host.link === "connecting" ? `connecting, ${before}` : before);
  time(refs.seen, lost ? host.seen_ms : null);
  text(refs.standing, host.standing ?? (host.fault ? "" : "not known"));
  text(refs.fault, host.fault);
  const unready = host.databases.filter((database) => !database.ready);
  const all = host.databases.length;
  text(refs.databases, !all ? "none" : unready.length ? `${unready.length} of ${all} not ready` : `${all} ready`);
  text(refs.unready, unready.length ? [unready[0].name, unready[0].why].filter(Boolean).join(": ") : "");
  const [failed, units] = unitCounts(host);
  text(refs.failed, failed);
  text(refs.units, units);
  const command = host.last_command;
  text(refs.command, commandText(command));
  refs.command.classList.toggle("bad", command?.status === "error");
  time(refs.when, command?.at_ms);
  text(refs.by, command?.by && `by ${command.by}`);
  if (view.details) patchDetails(view);
}

function patchDetails({ host, details: { refs } }) {
  hide(refs.trouble, !host.fault && !host.remedy);
  text(refs.fault, host.fault);
  text(refs.remedy, host.remedy);
  hide(refs.actions, token === null);
  hide(refs.release, !host.held);
  keyed(refs.facts, facts(host), ([term]) => term, "fact", (part, [term, value, at, long], root) => {
    text(part.term, term);
    text(part.text, value);
    time(part.time, at);
    root.classList.toggle("long", Boolean(long));
  });
  const databases = [...host.databases].sort((a, b) => a.ready - b.ready);
  parts(refs.databases, databases, 0, (part, database) => {
    data(part.text, "mood", database.ready ? "good" : "bad");
    text(part.text, `${[database.ready ? "ready" : "not ready", database.why].filter(Boolean).join(": ")}, changed`);
    time(part.time, database.since_ms);
    return database.ready ? ["●", "good"] : ["✕", "bad"];
  });
  const units = [...host.units].sort((a, b) => unitRank(a) - unitRank(b));
  parts(refs.units, units, host.units_omitted, (part, unit) => {
    const look = UNITS.get(unit.state) ?? ["?", ""];
    data(part.text, "mood", look[1]);
    text(part.text, unit.result && unit.result !== "success" ? `${unit.state}: ${unit.result}` : unit.state);
    return look;
  });
}

function parts(parent, all, omitted, patch) {
  const items = all.slice(0, MOST_PARTS);
  const more = all.length - items.length + omitted;
  if (more) items.push({ name: `${more} more`, rest: true });
  else if (!items.length) items.push({ name: "None", rest: true });
  keyed(parent, items, (item) => (item.rest ? "\0rest" : item.name), "part", (part, item) => {
    const [symbol, mood] = item.rest ? ["", ""] : patch(part, item);
    text(part.name, item.name);
    text(part.symbol, symbol);
    data(part.symbol, "mood", mood);
  });
}

function toggle(view, open = !view.details) {
  if (open === Boolean(view.details)) return;
  view.refs.opener.setAttribute("aria-expanded", String(open));
  if (open) {
    view.details = clone("details");
    view.details.root.id = `details-${++serial}`;
    view.refs.opener.setAttribute("aria-controls", view.details.root.id);
    patchDetails(view);
    view.root.append(view.details.root);
  } else {
    view.refs.opener.removeAttribute("aria-controls");
    view.details.root.remove();
    view.details = null;
  }
}

// Drawing: at most once in a frame, and only what changed

let frame = 0;
let timer = 0;
let filterChanged = false;
let historyChanged = false;

function schedule() {
  if (frame || timer) return;
  // No frames are drawn in a tab in the background, but its title has to say what is wrong.
  if (document.hidden) timer = setTimeout(flush, 250);
  else frame = requestAnimationFrame(flush);
}

function flush() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = timer = 0;
  const changed = [...dirty];
  dirty.clear();
  changed.forEach(patchRow);
  if (changed.length || filterChanged) {
    drawCounts();
    filterRows(filterChanged ? views.values() : changed);
    drawHolds();
  }
  filterChanged = false;
  arrange();
  if (historyChanged) drawHistory();
  historyChanged = false;
}

function drawCounts() {
  const counts = new Map([...STATES.keys()].map((state) => [state, 0]));
  for (const view of views.values()) counts.set(view.shown, counts.get(view.shown) + 1);
  keyed($("counts"), [...counts], ([state]) => state, "count", (part, [state, n], root) => {
    data(root, "shown", state);
    text(part.symbol, STATES.get(state));
    text(part.word, state);
    text(part.number, n);
    root.toggleAttribute("data-zero", n === 0);
    root.setAttribute("aria-pressed", String(pressed.has(state)));
  });
  const told = [...counts].reverse().filter(([, n]) => n).map(([state, n]) => `${n} ${state}`);
  if (coordinator) summarize(views.size ? `${plural(views.size, "host")}: ${told.join(", ")}` : "No hosts");
  drawTitle(PROBLEMS.reduce((sum, state) => sum + counts.get(state), 0));
}

let problems = 0;

function drawTitle(count = problems) {
  problems = count;
  const title = `${live ? "" : "No connection · "}${problems ? `${plural(problems, "problem")} · ` : ""}Fleet`;
  if (document.title !== title) document.title = title;
}

let summary = "";
let summaryTimer = 0;

/** At most once in a second, so that who listens hears whole sentences. */
function summarize(sentence) {
  summary = sentence;
  if (summaryTimer) return;
  text($("summary"), summary);
  summaryTimer = setTimeout(() => { summaryTimer = 0; text($("summary"), summary); }, 1000);
}

function filterRows(some) {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const view of some) {
    const fits = (!pressed.size || pressed.has(view.shown)) && words.every((word) => view.words.includes(word));
    // What has the focus stays until the focus leaves it.
    hide(view.root, !fits && !view.root.contains(document.activeElement));
  }
  const filtered = pressed.size > 0 || words.length > 0;
  const shown = shownViews().length;
  hide($("clear"), !filtered);
  text($("shown"), filtered ? `${shown} of ${views.size} shown` : "");
  hide(table, shown === 0);
  hide($("none"), shown > 0 || !coordinator);
  text($("none"), views.size ? "No hosts match the filter." : "This coordinator has no hosts.");
  hide($("bulk"), token === null || shown === 0);
}

const shownViews = () => [...views.values()].filter((view) => !view.root.hidden);
const shownHosts = () => shownViews().map((view) => view.host.name).sort(collator.compare);

/** A row must not move away from under who is working on it. */
function orderKept() {
  const selection = getSelection();
  const working = document.hasFocus() && document.activeElement?.closest("#hosts > tbody");
  return Boolean(working || document.querySelector("dialog[open]"))
    || (!selection.isCollapsed && table.contains(selection.anchorNode));
}

function arrange() {
  const kept = moved.size > 0 && orderKept();
  hide($("order"), !kept);
  if (kept || !moved.size) return;
  const focused = document.activeElement;
  const sorted = [...views.values()].sort((a, b) => a.rank - b.rank || collator.compare(a.host.name, b.host.name));
  // Taken out first: then the walk below moves these and no others.
  for (const view of moved) view.root.remove();
  moved.clear();
  let cursor = table.tBodies[0] ?? null;
  for (const { root } of sorted) {
    if (root === cursor) cursor = cursor.nextElementSibling;
    else table.insertBefore(root, cursor);
  }
  if (focused !== document.activeElement) focused.focus({ preventScroll: true });
}

function drawHolds() {
  const held = [...views.values()].map((view) => view.host).filter((host) => host.held)
    .sort((a, b) => collator.compare(a.name, b.name));
  hide($("no-holds"), held.length > 0);
  keyed($("holds"), held, (host) => host.name, "held", (part, host, root) => {
    data(root, "name", host.name);
    text(part.name, host.name);
    text(part.standing, host.standing);
    hide(part.release, token === null);
    part.release.setAttribute("aria-label", `Release ${host.name}`);
  });
}

function drawHistory() {
  hide($("no-history"), history.length > 0);
  keyed($("history"), history, JSON.stringify, "entry", (part, entry) => {
    text(part.clock, isInstant(entry.at_ms) ? clock.format(entry.at_ms) : "");
    time(part.when, entry.at_ms);
    text(part.host, entry.host);
    data(part.what.parentNode, "mood", entry.level);
    text(part.symbol, { warning: "◐", error: "✕" }[entry.level] ?? "");
    text(part.what, entry.what);
    text(part.message, entry.message);
    text(part.by, entry.by && `by ${entry.by}`);
  });
}

// The connection

let source = null;
let live = false;
let pause = 1000;
let retry = 0;
let heard = 0;

function connect() {
  clearTimeout(retry);
  retry = 0;
  source?.close();
  source = new EventSource("events");
  heard = Date.now();
  const on = (type, take, counts = true) => source.addEventListener(type, (event) => {
    heard = Date.now();
    take(JSON.parse(event.data));
    if (counts) {
      hide($("heard-line"), false);
      time($("heard"), now());
    }
    schedule();
  });
  on("fleet", replaceAll);
  on("host", setHost);
  on("history", (entry) => { history = [entry, ...history].slice(0, MOST_ENTRIES); historyChanged = true; });
  on("beat", () => {}, false);
  // Left to itself, EventSource gives up for good after some errors.
  source.onerror = disconnected;
}

function disconnected() {
  source.close();
  setLive(false);
  clearTimeout(retry);
  retry = setTimeout(connect, pause * (0.75 + Math.random() / 2));
  pause = Math.min(pause * 2, 15_000);
}

function setLive(value) {
  live = value;
  $("connection").dataset.state = live ? "live" : "reconnecting";
  text($("connection-word"), live ? "Live" : "Reconnecting");
  hide($("banner"), live);
  text($("banner"), live ? "" :
    `No connection to the coordinator since ${clock.format(now())}. What is shown may be out of date.`);
  drawTitle();
}

function replaceAll(fleet) {
  skew = fleet.now_ms - Date.now();
  coordinator = fleet.coordinator;
  pause = 1000;
  const names = new Set(fleet.hosts.map((host) => host.name));
  for (const [name, view] of views) {
    if (names.has(name)) continue;
    view.root.remove();
    for (const set of [dirty, moved]) set.delete(view);
    views.delete(name);
  }
  fleet.hosts.forEach(setHost);
  history = fleet.history.slice(0, MOST_ENTRIES);
  historyChanged = filterChanged = true;
  if (!live) setLive(true);
  const started = isInstant(coordinator.started_ms) ? absolute.format(coordinator.started_ms) : "at a time not known";
  text($("about"), `io-coordinator ${coordinator.version}, started ${started}`);
  drawSign();
  resume();
}

function tick() {
  if (!retry && Date.now() - heard > (live ? SILENCE_MS : FIRST_MS)) disconnected();
  for (const node of document.querySelectorAll("time")) {
    const ms = instants.get(node);
    if (ms !== undefined) text(node, ago(ms));
  }
}

// Commands

const ACTIONS = {
  drain: ["Drain", "Stops the services that depend on a database."],
  undrain: ["Undrain", "Starts the services that depend on a database."],
  hold: ["Hold", "Keeps the services stopped, until it is released or its time is over."],
  release: ["Release", "Ends the hold."],
};
let asked = null;

function drawSign() {
  hide($("sign"), !coordinator?.commands);
  text($("sign"), token === null ? "Sign in" : "Sign out");
}

function setToken(value) {
  token = value;
  if (token === null) sessionStorage.removeItem("token");
  else sessionStorage.setItem("token", token);
  drawSign();
  for (const view of views.values()) dirty.add(view);
  filterChanged = true;
  schedule();
}

function ask(path, bearer, options = {}) {
  return fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    headers: { authorization: `Bearer ${bearer}`, "content-type": "application/json" } });
}

/** Gives what is wrong with the token, or "" when it is right. */
async function verify(candidate) {
  if (!/^[\x21-\x7e]+$/.test(candidate)) return "A token has only letters, digits and signs, and no spaces.";
  try {
    const { status } = await ask("api/session", candidate);
    const told = { 204: "", 401: "This is not the token of this coordinator.", 403: "Commands are not enabled on this coordinator." };
    return told[status] ?? `The coordinator answered with status ${status}.`;
  } catch {
    return "The coordinator does not answer.";
  }
}

let resuming = false;

/** Signs in again after the page was loaded anew. */
async function resume() {
  const stored = sessionStorage.getItem("token");
  if (!coordinator.commands) { if (token !== null) setToken(null); return; }
  if (resuming || token !== null || stored === null) return;
  resuming = true;
  const wrong = await verify(stored);
  resuming = false;
  // It may have been forgotten meanwhile.
  if (!wrong && sessionStorage.getItem("token") === stored) setToken(stored);
}

async function signIn(event) {
  event.preventDefault();
  const candidate = $("token").value.trim();
  text($("sign-in-error"), "");
  const wrong = await verify(candidate);
  if (!$("sign-in").open) return;
  text($("sign-in-error"), wrong);
  if (wrong) { $("token").select(); return; }
  setToken(candidate);
  $("sign-in").close();
}

function confirmFor(action, names) {
  if (!names.length) return;
  const [verb, explained] = ACTIONS[action];
  asked = { action, names, sending: false };
  const lost = names.filter((name) => views.get(name)?.shown === "lost").length;
  text($("confirm-title"), names.length === 1 ? `${verb} this host?` : `${verb} ${names.length} hosts?`);
  text($("confirm-text"), explained);
  text($("confirm-yes"), names.length === 1 ? verb : `${verb} ${names.length} hosts`);
  text($("confirm-error"), "");
  hide($("confirm-lost"), lost === 0);
  text($("confirm-lost"), names.length === 1 ? "This host is lost and may not hear of it."
    : `${lost} of these hosts are lost and may not hear of it.`);
  hide($("hold-fields"), action !== "hold");
  $("reason").value = $("duration").value = "";
  $("confirm-yes").disabled = false;
  text($("until"), "");
  $("confirm-hosts").replaceChildren(...names.map((name) => {
    const line = document.createElement("li");
    line.className = "foreign";
    line.textContent = name;
    return line;
  }));
  $("confirm").showModal();
  // Not the button that does it: a second Enter must not be enough.
  $(action === "hold" ? "reason" : "confirm-no").focus();
}

/** Gives null for no duration, NaN for what is none. */
function durationMs(given) {
  const written = given.trim().toLowerCase();
  if (!written) return null;
  const found = /^(?:(\d{1,4})\s*d)?\s*(?:(\d{1,5})\s*h)?\s*(?:(\d{1,6})\s*m(?:in)?)?\s*(?:(\d{1,7})\s*s)?$/.exec(written);
  const [days, hours, minutes, seconds] = (found ?? []).slice(1).map((digits) => Number(digits ?? 0));
  return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 || NaN;
}

function showUntil() {
  const ms = durationMs($("duration").value);
  text($("until"), ms ? `Until ${absolute.format(now() + ms)}` : "");
}

function commandOf({ action, names }) {
  if (action !== "hold") return [{ action, hosts: names }, ""];
  const reason = $("reason").value.trim();
  const ms = durationMs($("duration").value);
  if (!reason) return [null, "Give a reason: it is shown to everyone who looks at this host."];
  if (Number.isNaN(ms)) return [null, "Write the duration like 2h, 30m or 1h30m, or leave it empty."];
  return [{ action, hosts: names, reason, ...(ms === null ? {} : { for_ms: ms }) }, ""];
}

async function send(event) {
  event.preventDefault();
  const mine = asked;
  const [command, wrong] = commandOf(mine);
  text($("confirm-error"), wrong);
  if (wrong || mine.sending || token === null) return;
  mine.sending = $("confirm-yes").disabled = true;
  const [done, told] = await deliver(command);
  mine.sending = false;
  const open = asked === mine && $("confirm").open;
  if (open) $("confirm-yes").disabled = false;
  if (open && done) $("confirm").close();
  if (open && !done) text($("confirm-error"), told);
  else notify(told);
}

/** Gives whether the coordinator took it, and what to say. */
async function deliver(command) {
  try {
    const answer = await ask("api/command", token, { method: "POST", body: JSON.stringify(command) });
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 202) {
      const all = command.hosts.length;
      const accepted = body.accepted ?? all;
      const who = accepted === all ? plural(all, "host") : `only ${accepted} of ${plural(all, "host")}`;
      return [true, `Told to ${command.action}: ${who}.`];
    }
    if (answer.status === 401) {
      setToken(null);
      return [false, "The token is no longer right. Cancel, and sign in again."];
    }
    return [false, answer.status === 403 ? "Commands are not enabled on this coordinator."
      : `Refused: ${body.error ?? `the coordinator answered with status ${answer.status}`}`];
  } catch {
    return [false, "No answer from the coordinator. It may have taken the command: look at the history before you try again."];
  }
}

let noticeTimer = 0;

function notify(told) {
  clearTimeout(noticeTimer);
  text($("notice"), told);
  noticeTimer = setTimeout(() => text($("notice"), ""), 15_000);
}

function show(name) {
  const view = views.get(name);
  if (!view) return;
  toggle(view, true);
  hide(table, false);
  hide(view.root, false);
  view.refs.opener.focus({ preventScroll: true });
  view.root.scrollIntoView({ block: "center" });
}

// What a person does

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { act } = button.dataset;
  const name = button.closest("#holds > li")?.dataset.name ?? button.closest("#hosts > tbody")?.view.host.name;
  if (button.classList.contains("count")) {
    const { shown } = button.dataset;
    if (!pressed.delete(shown)) pressed.add(shown);
  } else if (button.id === "clear") {
    pressed.clear();
    $("filter").value = "";
    $("filter").focus();
  } else if (button.id === "sign") {
    if (token !== null) return setToken(null);
    $("token").value = "";
    text($("sign-in-error"), "");
    return $("sign-in").showModal();
  } else if (act === "cancel") return button.closest("dialog").close();
  else if (act === "toggle") return toggle(views.get(name));
  else if (act === "show") return show(name);
  else if (act === "drain-shown") return confirmFor("drain", shownHosts());
  else if (act === "undrain-shown") return confirmFor("undrain", shownHosts());
  else if (Object.hasOwn(ACTIONS, act ?? "")) return confirmFor(act, [name]);
  else return;
  filterChanged = true;
  schedule();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, dialog")) return;
  event.preventDefault();
  $("filter").select();
  $("filter").focus();
});

$("filter").addEventListener("input", () => { filterChanged = true; schedule(); });
table.addEventListener("focusout", () => { filterChanged = true; schedule(); });
document.addEventListener("selectionchange", () => { if (moved.size) schedule(); });
addEventListener("blur", () => { if (moved.size) schedule(); });
document.addEventListener("visibilitychange", () => { if (frame || timer) flush(); });
addEventListener("online", () => { if (retry) connect(); });
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => { $("token").value = ""; schedule(); });
}
$("sign-in").firstElementChild.addEventListener("submit", signIn);
$("confirm").firstElementChild.addEventListener("submit", send);
$("duration").addEventListener("input", showUntil);
setInterval(tick, 5000);
connect();
