// The rater's page. A cursor runs over the questions of all screens, two to a screen: an answer moves it on, Back moves it
// back. An answer counts once the server has said so; until then it is sent again, under the same name.

const QUESTIONS = ["quality", "alignment"];
const CHOICES = [
  ["a", "I prefer set A", "1", "ArrowLeft"],
  ["neither", "I am indifferent", "2", "ArrowDown"],
  ["b", "I prefer set B", "3", "ArrowRight"],
];

const $ = (id) => document.getElementById(id);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let answered = []; // how many questions of each screen are answered
let cursor = { screen: 0, question: 0 };
let since = 0; // when the question under the cursor was put
let busy = true; // loading or saving: no answer is taken
const loaded = new Map(); // screens by number, as promises

// ---- talking to the server

class Refused extends Error {
  constructor(status, body) {
    super(body.error);
    this.status = status;
    this.body = body;
  }
}

async function call(path, body) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
  });
  const reply = await response.json();
  if (!response.ok) throw new Refused(response.status, reply);
  return reply;
}

/** As often as it takes, unless the server refuses. */
async function insist(attempt) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      const result = await attempt();
      $("notice").textContent = "";
      return result;
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      $("notice").textContent = "The server does not answer. Trying again …";
    }
    await wait(pause);
  }
}

function load(number) {
  if (!loaded.has(number)) loaded.set(number, fetchScreen(number));
  return loaded.get(number);
}

async function fetchScreen(number) {
  const screen = await insist(() => call(`api/screen/${number}`));
  const draw = (source) => insist(async () => {
    const image = new Image();
    image.src = source;
    image.alt = "";
    await image.decode();
    return image;
  });
  const sides = ["a", "b"].map(async (side) => Promise.all(screen.images[side].map(draw)));
  const [a, b] = await Promise.all(sides);
  return { ...screen, images: { a, b } };
}

// ---- showing

function show(id) {
  for (const section of ["welcome", "compare", "done"]) $(section).hidden = section !== id;
}

async function showScreen() {
  busy = true;
  show("compare");
  $("compare").classList.add("loading");
  const number = cursor.screen;
  const screen = await load(number);
  if (number !== cursor.screen) return;
  const missing = QUESTIONS.findIndex((question) => !(question in screen.answers));
  if (missing >= 0) cursor.question = missing;
  $("caption").textContent = `“${screen.caption}”`;
  document.querySelector("#alignment q").textContent = screen.caption;
  for (const side of ["a", "b"]) showSet(side, screen.images[side]);
  $("compare").classList.remove("loading");
  for (const other of loaded.keys()) if (Math.abs(other - number) > 1) loaded.delete(other);
  if (number + 1 < answered.length) load(number + 1);
  scrollTo(0, 0);
  $("caption").focus({ preventScroll: true });
  busy = false;
  showCursor(screen);
}

function showSet(side, images) {
  const buttons = images.map((image, k) => {
    const button = document.createElement("button");
    button.setAttribute("aria-label", `Set ${side.toUpperCase()}, image ${k + 1} of ${images.length}: enlarge`);
    button.append(image);
    button.onclick = () => zoom(side, images, k);
    return button;
  });
  const columns = images.length > 3 ? Math.ceil(images.length / 2) : images.length;
  $("compare").style.setProperty("--columns", columns);
  $("compare").style.setProperty("--rows", Math.ceil(images.length / columns));
  $(`images-${side}`).replaceChildren(...buttons);
}

/** What is answered, what is asked, and how far it is. */
function showCursor(screen) {
  since = performance.now();
  QUESTIONS.forEach((question, i) => {
    $(question).classList.toggle("active", i === cursor.question);
    for (const button of $(question).querySelectorAll("button")) {
      button.setAttribute("aria-pressed", screen.answers[question] === button.dataset.choice);
      button.setAttribute("aria-disabled", busy);
    }
  });
  $("back").disabled = cursor.screen === 0 && cursor.question === 0;
  $("next").disabled = !screen.answers[QUESTIONS[cursor.question]];
  $("position").textContent = `${cursor.screen + 1} of ${answered.length}`;
  showProgress();
}

function showProgress() {
  $("progress").max = 2 * answered.length;
  $("progress").value = answered.reduce((sum, count) => sum + count, 0);
}

function showDone() {
  showProgress();
  $("position").textContent = "";
  $("total").textContent = `All ${answered.length} comparisons are answered, and every answer is kept.`;
  show("done");
  document.querySelector("#done h1").focus();
}

// ---- answering and moving

async function answer(i, choice) {
  if (busy) return;
  busy = true;
  const question = QUESTIONS[i];
  const screen = await load(cursor.screen);
  const wasComplete = answered[cursor.screen] === QUESTIONS.length;
  const submission = Array.from(crypto.getRandomValues(new Uint8Array(16)), (x) => x.toString(16).padStart(2, "0")).join("");
  const seconds = Math.round(performance.now() - since) / 1000;
  screen.answers[question] = choice;
  showCursor(screen);
  try {
    await insist(() => call("api/answer", { screen: cursor.screen, question, choice, seconds, submission }));
  } catch {
    location.reload(); // signed out, or the study is another one now
    return;
  }
  answered[cursor.screen] = Object.keys(screen.answers).length;
  const missing = QUESTIONS.findIndex((other) => !(other in screen.answers));
  if (missing >= 0) cursor.question = missing;
  else if (!wasComplete || i === QUESTIONS.length - 1) return moveTo(cursor.screen + 1, 0);
  else cursor.question = i + 1;
  busy = false;
  showCursor(screen);
}

/** To a question; past the last one to the first that is not answered, or to the end. */
async function moveTo(screen, question) {
  if (screen === answered.length) {
    screen = answered.findIndex((count) => count < QUESTIONS.length);
    if (screen < 0) return showDone();
  }
  const same = screen === cursor.screen && !$("compare").hidden && !busy;
  cursor = { screen, question };
  if (same) showCursor(await load(screen));
  else await showScreen();
}

function back() {
  if (!busy && !$("back").disabled) {
    if (cursor.question) moveTo(cursor.screen, cursor.question - 1);
    else moveTo(cursor.screen - 1, QUESTIONS.length - 1);
  }
}

function next() {
  if (!busy && !$("next").disabled) {
    if (cursor.question + 1 < QUESTIONS.length) moveTo(cursor.screen, cursor.question + 1);
    else moveTo(cursor.screen + 1, 0);
  }
}

// ---- one image, large

function zoom(side, images, k) {
  const turn = (by) => {
    k = (k + by + images.length) % images.length;
    $("zoomed").src = images[k].src;
    $("zoomed").alt = $("zoom-title").textContent = `Set ${side.toUpperCase()}, image ${k + 1} of ${images.length}`;
  };
  turn(0);
  $("previous").onclick = () => turn(-1);
  $("following").onclick = () => turn(1);
  $("zoomed").onclick = $("close").onclick = () => $("zoom").close();
  $("zoom").onclick = (event) => event.target === $("zoom") && $("zoom").close();
  $("zoom").showModal();
}

// ---- coming in

async function welcome(credential, enterBy) {
  $("named").hidden = enterBy === "link";
  $("name").required = enterBy !== "link";
  if (enterBy === "link" && !credential) {
    $("enter").hidden = true;
    $("refusal").textContent = "To take part, open the link that was sent to you.";
  }
  show("welcome");
  if (enterBy === "name") $("name").focus();
  $("enter").onsubmit = async (event) => {
    event.preventDefault();
    const who = enterBy === "link" ? { credential } : { name: $("name").value };
    try {
      await insist(() => call("api/enter", who));
    } catch (error) {
      $("refusal").textContent = `Sorry, ${error.message}.`;
      return;
    }
    history.replaceState(null, "", location.pathname);
    start();
  };
}

async function start() {
  const credential = location.hash.slice(1);
  if (credential) return welcome(credential, "link");
  const session = await insist(() => call("api/session"));
  if (!session.rater) return welcome("", session.enter_by);
  answered = session.answered;
  $("rater").textContent = session.rater;
  $("leave").hidden = session.enter_by !== "name";
  return moveTo(answered.length, 0);
}

for (const [i, question] of QUESTIONS.entries()) {
  for (const [choice, text, key] of CHOICES) {
    const button = document.createElement("button");
    button.dataset.choice = choice;
    button.innerHTML = `<kbd>${key}</kbd>`;
    button.append(text);
    button.onclick = (event) => event.detail < 2 && answer(i, choice); // a double click is one answer
    document.querySelector(`#${question} .choices`).append(button);
  }
}
$("back").onclick = back;
$("next").onclick = next;
$("review").onclick = () => moveTo(answered.length - 1, QUESTIONS.length - 1);

$("leave").onclick = async () => {
  await insist(() => call("api/leave", {}));
  location.reload();
};

addEventListener("unhandledrejection", ({ reason }) => {
  $("notice").textContent = `${reason.message}. Please reload this page.`;
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("compare").hidden) return;
  if ($("zoom").open) {
    if (event.key === "ArrowLeft") $("previous").click();
    if (event.key === "ArrowRight") $("following").click();
    return;
  }
  const found = CHOICES.find(([, , ...keys]) => keys.includes(event.key));
  if (found) answer(cursor.question, found[0]);
  else if (event.key === "Backspace") back();
  else if (event.key === "Enter" && event.target.tagName !== "BUTTON") next();
  else return;
  event.preventDefault();
});

start();
