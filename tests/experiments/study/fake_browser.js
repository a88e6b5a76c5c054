// Just enough of a browser to answer a questionnaire: elements, clicks, storage, one saved file.
const fs = require("node:fs");
const vm = require("node:vm");

const [, , page, participant, preferences] = process.argv;
const html = fs.readFileSync(page, "utf8");
const data = html.match(/<script type="application\/json" id="study">(.*?)<\/script>/s)[1];
const script = html.match(/<script>\n(.*)<\/script>/s)[1];
const preferred = JSON.parse(preferences); // question -> names of pictures, best first

class Element {
  constructor(tag) { Object.assign(this, { tag, children: [], attributes: {}, heard: {}, dataset: {} }); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, heard) { this.heard[name] = heard; }
  focus() {}
  get firstChild() { return this.children[0]; }
  click() { if (!this.disabled) this.heard.click(); }
  all(test) {
    const below = this.children.filter((c) => c instanceof Element).flatMap((c) => c.all(test));
    return test(this) ? [this, ...below] : below;
  }
}

const app = new Element("main");
const files = [];
const stored = {};
const world = {
  document: {
    title: "t",
    getElementById: (id) => (id === "app" ? app : { textContent: data }),
    createElement: (tag) => new Element(tag),
  },
  window: { scrollTo() {}, confirm: () => true },
  localStorage: { getItem: (k) => stored[k] ?? null, setItem: (k, v) => { stored[k] = v; } },
  crypto: require("node:crypto").webcrypto,
  Blob: class { constructor(parts) { this.text = parts.join(""); } },
  URL: { createObjectURL: (blob) => { files.push(blob.text); return "blob:"; } },
};
const button = (text) => app.all((e) => e.textContent === text)[0];
const check = (truth, what) => { if (!truth) throw new Error(what); };

vm.runInNewContext(script, { ...world });
app.all((e) => e.tag === "form")[0].heard.submit({ preventDefault() {} });
check(app.all((e) => e.tag === "input").length === 1, "nobody goes on without a code");
app.all((e) => e.tag === "input")[0].value = ` ${participant} `;
app.all((e) => e.tag === "form")[0].heard.submit({ preventDefault() {} });
const study = JSON.parse(data);
const asked = new Set();
for (let i = 0; i < study.questions.length; i++) {
  const pictures = app.all((e) => e.className === "choice");
  const shown = pictures.map((e) => e.children[1].src);
  const question = study.questions.find((q) => q.choices.some((c) => c.picture === shown[0]));
  asked.add(question.name);
  const press = (name) => {
    const picture = question.choices.find((c) => c.name === name).picture;
    pictures[shown.indexOf(picture)].click();
  };
  const wanted = preferred[question.name];
  check(button("Next").disabled, "a ranking is to be whole");
  press(wanted.at(-1)); // a slip
  press(wanted.at(-1)); // taken back
  wanted.forEach(press);
  check(pictures[0].attributes["aria-pressed"] === "true", "a pressed picture says so");
  check(/^Picture 1, rank \d$/.test(pictures[0].attributes["aria-label"]), "it says its rank");
  check(!button("Next").disabled, "a whole ranking goes on");
  if (i === 1) { // away and here again, and the page loaded anew
    button("Back").click();
    vm.runInNewContext(script, { ...world });
    button("Next").click();
  }
  button("Next").click();
}
check(asked.size === study.questions.length, "every question is asked once");
process.stdout.write(files.at(-1));
