"use strict";
const {study, pairs} = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const groups = [...document.querySelectorAll("fieldset")];
const questions = groups.map(group => group.dataset.question);
const buttons = [...document.querySelectorAll(".picture")];
const KEYS = {1: "set_1", 0: "none", 2: "set_2"};
const STORE = `user-study-${study}`;
const END = pairs.length;
const blank = () => ({annotator: "", place: -1, answers: pairs.map(() => ({}))});

// What is known: the annotator, the place (-1 the start, then pairs, then the end), the answers.
let state = blank();
let current = 0; // the question that the keys answer

function restore() {
  try {
    state = JSON.parse(localStorage.getItem(STORE)) ?? state;
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    at("forgetful").hidden = false;
  }
}

function keep() {
  try { localStorage.setItem(STORE, JSON.stringify(state)); } catch { /* said at the start */ }
}

function go(place) {
  state.place = place;
  keep();
  at("start").hidden = place !== -1;
  at("pair").hidden = place < 0 || place === END;
  at("end").hidden = place !== END;
  if (place === -1) return;
  if (place === END) showEnd(); else showPair();
  window.scrollTo(0, 0);
}

const missing = answers => questions.filter(question => !(question in answers));

function showPair() {
  const {prompt, sets} = pairs[state.place];
  at("where").textContent = `${state.place + 1} of ${pairs.length}`;
  at("progress").value = pairs.filter((_, number) => !missing(state.answers[number]).length).length;
  at("prompt").textContent = `“${prompt}”`;
  for (const button of buttons)
    button.firstChild.src = sets[button.dataset.set - 1][button.dataset.picture - 1];
  at("unanswered").textContent = "";
  at("back").disabled = state.place === 0;
  at("next").textContent = state.place === END - 1 ? "Finish" : "Next pair";
  for (const radio of document.querySelectorAll("fieldset input"))
    radio.checked = state.answers[state.place][radio.name] === radio.value;
  point(Math.max(0, questions.findIndex(question => !(question in state.answers[state.place]))));
  at("where").focus({preventScroll: true});
}

function point(question) {
  current = question;
  groups.forEach((group, number) => group.classList.toggle("current", number === current));
}

function answer(question, value) {
  state.answers[state.place][question] = value;
  at("unanswered").textContent = "";
  keep();
  const open = questions.findIndex(name => !(name in state.answers[state.place]));
  point(open < 0 ? questions.indexOf(question) : open);
}

function next() {
  const [first, ...more] = missing(state.answers[state.place]);
  if (!first) return go(state.place + 1);
  at("unanswered").textContent = more.length
    ? `${more.length + 1} questions have no answer yet` : "One question has no answer yet";
  point(questions.indexOf(first));
  groups[current].querySelector("input").focus();
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([written()], {type: "application/json"}));
  link.download = `answers-${study}-${state.annotator.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  at("said").textContent = `Saved as ${link.download}`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(written());
    at("said").textContent = "Copied: paste it into a message or a file";
  } catch {
    at("text").closest("details").open = true;
    at("text").select();
    at("said").textContent = "The clipboard is closed to this page: please copy the text below";
  }
}

function written() {
  const answers = state.answers.map((given, number) => ({
    pair: number + 1,
    ...Object.fromEntries(questions.map(question => [question, given[question] ?? null])),
  }));
  return JSON.stringify({study, annotator: state.annotator, answers}, null, 1);
}

function showEnd() {
  const asked = pairs.length * questions.length;
  const open = state.answers.reduce((sum, given) => sum + missing(given).length, 0);
  at("thanks").textContent = open ? "Stop here?" : "Thank you!";
  at("answered").textContent = `${asked - open} of ${asked} questions are answered.`;
  at("said").textContent = "";
  at("text").value = written();
  at("thanks").focus({preventScroll: true});
}

function enlarge(button) {
  const {set, picture} = button.dataset;
  const same = buttons.filter(other => other.dataset.set === set);
  at("enlarged").src = button.firstChild.src;
  at("caption").textContent = `Set ${set}, picture ${picture} of ${same.length}`;
  at("large").turn = step =>
    enlarge(same[(Number(picture) - 1 + step + same.length) % same.length]);
  if (!at("large").open) at("large").showModal();
}

at("begin").onsubmit = event => {
  event.preventDefault();
  const name = at("annotator").value.trim();
  const agreed = at("consent")?.checked ?? true;
  at("unnamed").textContent = !name ? "Please enter a name or code" : agreed ? "" : "Please agree first";
  if (!name) return at("annotator").focus();
  if (!agreed) return at("consent").focus();
  state.annotator = name;
  go(0);
};
at("questions").onsubmit = event => { event.preventDefault(); next(); };
at("questions").onchange = event => answer(event.target.name, event.target.value);
at("questions").addEventListener("focusin", event => {
  const group = event.target.closest("fieldset");
  if (group && event.target.matches(":focus-visible")) point(groups.indexOf(group));
});
at("back").onclick = () => go(state.place - 1);
at("stop").onclick = () => go(END);
at("again").onclick = () => {
  const open = state.answers.findIndex(given => missing(given).length);
  go(open < 0 ? END - 1 : open);
};
at("other").onclick = () => {
  if (!confirm("Have the answers been saved? They are removed from this page.")) return;
  state = blank();
  at("begin").reset();
  go(-1);
};
at("download").onclick = download;
at("copy").onclick = copy;
for (const button of buttons) button.onclick = () => enlarge(button);
at("previous").onclick = () => at("large").turn(-1);
at("following").onclick = () => at("large").turn(1);
at("close").onclick = () => at("large").close();
at("large").onclick = event => { if (event.target === at("large")) at("large").close(); };

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (at("large").open) {
    if (event.key === "ArrowLeft") at("large").turn(-1);
    if (event.key === "ArrowRight") at("large").turn(1);
    return;
  }
  if (at("pair").hidden || !at("keys").checked) return;
  if (event.key in KEYS) {
    const value = KEYS[event.key], group = groups[current];
    group.querySelector(`[value=${value}]`).checked = true;
    answer(questions[current], value);
  } else if (event.key === "Enter" && !event.target.closest("button")) {
    event.preventDefault();
    next();
  } else if (event.key === "Backspace" && state.place > 0) {
    go(state.place - 1);
  }
});

restore();
go(state.place);
