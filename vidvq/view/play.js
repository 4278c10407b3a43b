"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = id => document.getElementById(id);
  const canvas = by("frame"), buttons = [...document.querySelectorAll("[data-key]")];
  by("start").max = data.starts;
  // Indices of the keys that are held, the latest last.
  const held = [];
  let rollout = null, shown = 0, running = false, looping = false, turn = 0;

  const ask = async path => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };
  const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
  const draw = uri => new Promise(done => {
    const image = new Image();
    image.onload = () => {
      // Starts may differ in size.
      canvas.width = image.width;
      canvas.height = image.height;
      canvas.getContext("2d").drawImage(image, 0, 0);
      shown++;
      by("where").textContent = `frame ${shown}`;
      done();
    };
    image.src = uri;
  });
  const label = () => { by("run").textContent = running ? "Pause" : "Play"; };
  const fail = error => {
    running = false;
    label();
    by("problem").textContent = error.message;
  };

  async function show(frames, own) {
    for (const frame of frames) {
      if (own !== turn) return;
      const due = pause(1 / data.fps);
      await draw(frame);
      if (running) await due;
    }
  }

  async function begin() {
    const own = ++turn;
    rollout = null;
    const start = Math.min(Math.max(Math.round(Number(by("start").value)) || 1, 1), data.starts);
    by("start").value = start;
    by("problem").textContent = "";
    try {
      const found = await ask(`/start?start=${start - 1}`);
      if (own !== turn) return;
      shown = 0;
      await show(found.frames, own);
      if (own !== turn) return;
      rollout = found.rollout;
      loop();
    } catch (error) { fail(error); }
  }

  async function loop() {
    if (looping) return;
    looping = true;
    try {
      while (running && rollout !== null) {
        const own = turn, key = held.length ? held[held.length - 1] : -1;
        const found = await ask(`/step?rollout=${rollout}&key=${key}`);
        await show(found.frames, own);
      }
    } catch (error) { fail(error); }
    looping = false;
  }

  function run(go) {
    running = go;
    label();
    loop();
  }

  function hold(index, down) {
    const at = held.indexOf(index);
    if (down && at < 0) held.push(index);
    if (!down && at >= 0) held.splice(at, 1);
    buttons.forEach((button, each) => button.setAttribute("aria-pressed", held[held.length - 1] === each));
    if (down) run(true);
  }

  const indexOf = key => data.keys.findIndex(each => each.key === key);
  document.addEventListener("keydown", event => {
    const index = indexOf(event.key);
    if (index < 0 || event.ctrlKey || event.altKey || event.metaKey || event.target === by("start")) return;
    event.preventDefault();
    hold(index, true);
  });
  document.addEventListener("keyup", event => hold(indexOf(event.key), false));
  addEventListener("blur", () => [...held].forEach(index => hold(index, false)));
  buttons.forEach((button, index) => {
    button.addEventListener("pointerdown", () => hold(index, true));
    for (const end of ["pointerup", "pointerleave", "pointercancel"])
      button.addEventListener(end, () => hold(index, false));
  });
  by("run").addEventListener("click", () => run(!running));
  by("again").addEventListener("click", begin);
  by("start").addEventListener("change", begin);
  begin();
})();
