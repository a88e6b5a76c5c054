"use strict";
// One page at a time: who answers, then a ranking a question, then the answers as a file.
// Nothing is sent. What was answered is kept in this browser until the file is saved.

const study = JSON.parse(document.getElementById("study").textContent);
const app = document.getElementById("app");
const title = document.title;
const memory = "study-" + study.study + "-" + study.kind;
let state = restored() || { participant: "", answer: random(), place: -1, order: [], rankings: {} };

// 16 hexadecimal digits by chance: an answer's own name, so that no file is counted twice.
function random() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Another order for everyone, so that no picture gains by its place. (Fisher and Yates)
function shuffled(items) {
  const result = items.slice();
  for (let i = result.length - 1; i > 0; i--) {
    const j = crypto.getRandomValues(new Uint32Array(1))[0] % (i + 1);
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

function newOrder() {
  return shuffled(study.questions.map((question) => question.name)).map((name) => ({
    question: name,
    shown: shuffled(find(name).choices.map((choice) => choice.name)),
  }));
}

function find(name) {
  return study.questions.find((question) => question.name === name);
}

// A private window may refuse storage: the questionnaire works without it.
function restored() {
  try {
    return JSON.parse(localStorage.getItem(memory));
  } catch {
    return null;
  }
}

function keep() {
  try {
    localStorage.setItem(memory, JSON.stringify(state));
  } catch {
    return;
  }
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function show(heading, ...children) {
  const head = element("h1", { textContent: heading, tabIndex: -1 });
  app.replaceChildren(head, ...children);
  head.focus();
  window.scrollTo(0, 0);
}

function go(place) {
  state.place = place;
  keep();
  if (place < 0) start();
  else if (place < state.order.length) ask(state.order[place]);
  else finish();
}

function start() {
  const input = element("input", { id: "participant", autocomplete: "off", value: state.participant });
  const begin = element("button", { type: "submit", className: "main", textContent: "Begin" });
  const form = element(
    "form",
    {},
    element("label", { htmlFor: "participant" },
      "Your code: any word or number, the same in every questionnaire of this study", input),
    element("div", { className: "controls" }, begin),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!input.value.trim()) {
      input.focus();
      return;
    }
    state.participant = input.value.trim();
    if (!state.order.length) state.order = newOrder();
    go(0);
  });
  const size = study.questions.length + " pages. Nothing is sent: at the end you save a file.";
  show(title, element("p", { textContent: app.dataset.task }),
    element("p", { className: "soft", textContent: size }), form);
}

function ask(entry) {
  const question = find(entry.question);
  const ranking = state.rankings[question.name] || (state.rankings[question.name] = []);
  const next = element("button", { type: "button", className: "main", textContent: "Next" });
  const said = element("p", { className: "soft", role: "status" });
  const buttons = entry.shown.map((name, i) => choice(question, name, i + 1));
  said.setAttribute("aria-live", "polite");

  function choice(asked, name, number) {
    const picture = asked.choices.find((one) => one.name === name).picture;
    const button = element("button", { type: "button", className: "choice" },
      element("b", {}), element("img", { src: picture, alt: "" }));
    button.addEventListener("click", () => {
      const at = ranking.indexOf(name);
      if (at < 0) ranking.push(name);
      else ranking.splice(at, 1);
      update();
      keep();
    });
    return { button, name, number };
  }

  function update() {
    for (const { button, name, number } of buttons) {
      const rank = ranking.indexOf(name) + 1;
      button.setAttribute("aria-pressed", String(rank > 0));
      button.setAttribute("aria-label", "Picture " + number + (rank ? ", rank " + rank : ", no rank"));
      button.firstChild.textContent = rank || "";
    }
    next.disabled = ranking.length < entry.shown.length;
    said.textContent = ranking.length + " of " + entry.shown.length +
      " ranked. Press a picture again to take its rank away.";
  }

  const back = element("button", { type: "button", textContent: "Back" });
  const clear = element("button", { type: "button", textContent: "Start this page again" });
  next.addEventListener("click", () => go(state.place + 1));
  back.addEventListener("click", () => go(state.place - 1));
  clear.addEventListener("click", () => {
    ranking.length = 0;
    update();
    keep();
  });
  const shown = question.examples.map((picture, i) =>
    element("img", { src: picture, alt: "Example " + (i + 1) }));
  const given = question.text
    ? element("p", { className: "text", textContent: question.text })
    : element("div", { className: "examples" }, ...shown);
  const done = element("progress", { max: state.order.length, value: state.place });
  done.setAttribute("aria-label", "Page " + (state.place + 1) + " of " + state.order.length);
  update();
  show(title, done, given,
    element("p", { textContent: "Press the best first, then the next best, to the worst." }),
    element("div", { className: "choices" }, ...buttons.map(({ button }) => button)),
    said, element("div", { className: "controls" }, next, back, clear));
}

function answers() {
  return {
    format: "ldm-study-answers",
    study: study.study,
    questionnaire: study.kind,
    participant: state.participant,
    answer: state.answer,
    rankings: state.order.map(({ question, shown }) => ({
      question, shown, ranking: state.rankings[question] || [],
    })),
  };
}

function finish() {
  const text = JSON.stringify(answers(), null, 1);
  const file = new Blob([text], { type: "application/json" });
  const link = element("a", {
    className: "main",
    href: URL.createObjectURL(file),
    download: "answers-" + study.kind + "-" + state.answer + ".json",
    textContent: "Save the answers",
  });
  const back = element("button", { type: "button", textContent: "Back" });
  const again = element("button", { type: "button", textContent: "Someone else answers" });
  back.addEventListener("click", () => go(state.place - 1));
  again.addEventListener("click", () => {
    if (!window.confirm("Saved? What was answered here is then forgotten.")) return;
    state = { participant: "", answer: random(), place: -1, order: [], rankings: {} };
    go(-1);
  });
  const copy = element("textarea", { readOnly: true, value: text });
  copy.setAttribute("aria-label", "The answers as text");
  show("Thank you",
    element("p", { textContent: "Save the file, and give it to whoever asked you." }),
    element("div", { className: "controls" }, link, back, again),
    element("p", { className: "soft", textContent: "If nothing is saved, copy this text instead:" }),
    copy);
}

go(state.place);
