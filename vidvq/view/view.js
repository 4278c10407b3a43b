"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = id => document.getElementById(id);
  const picture = uri => new Promise(done => {
    const image = new Image();
    image.onload = () => done(image);
    image.src = uri;
  });
  const strips = await Promise.all(data.books.map(book => picture(book.strip)));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const LIST = 40, KEPT = 32;
  let clip, sheets, current = 0, start = 0, frame = 0, playing = null, chosen = null, latest = 0;
  let listed = 0, shown = [], words = "";

  // A saved page embeds its clips; a served page requests them.
  const ask = async path => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };
  const kept = new Map();
  const carried = {
    total: data.clips && data.clips.length,
    list: async from => {
      const wanted = words.toLowerCase().split(/\s+/);
      const clips = data.clips.map((clip, index) => ({...clip, index})).filter(clip =>
        wanted.every(word => [clip.key, clip.source].some(name => name.toLowerCase().includes(word))));
      return {total: clips.length, clips: clips.slice(from, from + LIST)};
    },
    clip: async index => data.clips[index],
    places: async (book, code) => {
      const places = [];
      let count = 0;
      data.clips.forEach((other, index) => {
        const size = other.grid[1] * other.grid[2];
        other.codes.forEach((value, at) => {
          const t = Math.floor(at / size);
          if (value !== code || bookOf(t) !== book) return;
          count++;
          if (places.length < 24)
            places.push({index, t, y: Math.floor(at % size / other.grid[2]), x: at % other.grid[2]});
        });
      });
      return {count, places};
    },
  };
  const served = {
    total: data.total,
    list: from => ask(`/clips?start=${from}&count=${LIST}&text=${encodeURIComponent(words)}`),
    clip: index => {
      if (!kept.has(index)) {
        if (kept.size === KEPT) kept.delete(kept.keys().next().value);
        kept.set(index, ask(`/clip?index=${index}`));
        kept.get(index).catch(() => kept.delete(index));
      }
      return kept.get(index);
    },
    places: (book, code) => ask(`/code?book=${book}&code=${code}`),
  };
  const source = data.clips ? carried : served;

  const make = (tag, text, parent) => {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const bookOf = t => t === 0 || data.books.length === 1 ? 0 : 1;
  const groupOf = index => Math.ceil(index / data.temporal);
  const colour = (code, alpha) => `hsl(${code * 137.508 % 360} 75% 55% / ${alpha})`;
  const codeAt = (of, t, y, x) => of.codes[(t * of.grid[1] + y) * of.grid[2] + x];
  const draw = (canvas, sheet, of, index) => {
    canvas.width = of.width;
    canvas.height = of.height;
    canvas.getContext("2d").drawImage(sheet, index % data.columns * of.width,
      Math.floor(index / data.columns) * of.height, of.width, of.height, 0, 0, of.width, of.height);
  };

  function show() {
    if (!clip) return;
    if (sheets[0]) draw(by("original"), sheets[0], clip, frame);
    // Draw the decoded frame enlarged, so that the grid lines are thin.
    const scale = Math.max(1, Math.min(8, Math.round(640 / clip.width))), canvas = by("decoded");
    canvas.width = clip.width * scale;
    canvas.height = clip.height * scale;
    const pen = canvas.getContext("2d"), t = groupOf(frame), side = data.spatial * scale;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sheets[1], frame % data.columns * clip.width, Math.floor(frame / data.columns) * clip.height,
      clip.width, clip.height, 0, 0, canvas.width, canvas.height);
    if (by("grid").checked) {
      for (let y = 0; y < clip.grid[1]; y++) for (let x = 0; x < clip.grid[2]; x++) {
        const code = codeAt(clip, t, y, x);
        const same = chosen && chosen.code === code && chosen.book === bookOf(t);
        pen.fillStyle = same ? "rgb(255 255 255 / .55)" : colour(code, .2);
        pen.fillRect(x * side, y * side, side, side);
        pen.strokeStyle = "rgb(0 0 0 / .35)";
        pen.strokeRect(x * side + .5, y * side + .5, side, side);
      }
    }
    if (chosen && chosen.x !== undefined && chosen.t === t) {
      pen.lineWidth = 3;
      pen.strokeStyle = "#fff";
      pen.strokeRect(chosen.x * side, chosen.y * side, side, side);
      pen.lineWidth = 1;
      pen.strokeStyle = "#000";
      pen.strokeRect(chosen.x * side - 2, chosen.y * side - 2, side + 4, side + 4);
    }
    by("scrub").value = frame;
    by("where").textContent = `frame ${frame} of ${clip.starts.length}, ${clip.starts[frame].toFixed(2)} s, t=${t}`;
  }

  async function open(index, at) {
    const mine = ++latest;
    document.body.setAttribute("aria-busy", "true");
    let next, loaded;
    try {
      next = await source.clip(index);
      loaded = await Promise.all([next.original ? picture(next.original) : null, picture(next.decoded)]);
    } catch (error) {
      if (mine === latest) by("facts").textContent = error.message;
      return;
    } finally {
      if (mine === latest) document.body.removeAttribute("aria-busy");
    }
    if (mine !== latest) return;
    stop();
    clip = next;
    current = index;
    // Keep the chosen code; its position was in the previous clip.
    if (chosen) chosen = {...chosen, t: undefined, y: undefined, x: undefined};
    sheets = loaded;
    frame = at || 0;
    by("before").hidden = !sheets[0];
    by("title").textContent = clip.key;
    by("facts").textContent = `${clip.source}, clip ${clip.clip}: ${clip.width}×${clip.height}, ` +
      `${clip.fps.toFixed(2)} fps, ${clip.duration.toFixed(2)} s, grid ${clip.grid.join("×")}` +
      (clip.frames > clip.starts.length ? `, the first ${clip.starts.length} of ${clip.frames} frames` : "") +
      (clip.psnr === null ? "" : `, PSNR ${clip.psnr.toFixed(2)} dB`);
    by("scrub").max = clip.starts.length - 1;
    // Keep the search results listed.
    if (words || shown.includes(index)) mark();
    else await list(index - index % LIST);
    show();
  }

  function stop() {
    cancelAnimationFrame(playing);
    playing = null;
    by("play").textContent = "Play";
  }

  function play() {
    if (!clip) return;
    const origin = performance.now() - clip.starts[frame] * 1000;
    by("play").textContent = "Pause";
    const step = now => {
      const time = Math.max(now - origin, 0) / 1000 % clip.duration;
      let next = clip.starts.findLastIndex(start => start <= time);
      if (next < 0) next = 0;
      if (next !== frame) { frame = next; show(); }
      playing = requestAnimationFrame(step);
    };
    playing = requestAnimationFrame(step);
  }

  // Of `vidvq generate evaluate --codes`.
  const bitsOf = (book, code) => {
    const of = data.statistics && data.statistics.books[book], row = of ? of.codes.indexOf(code) : -1;
    return row < 0 ? null : {bits: of.bits[row], nearest: of.nearest[row]};
  };
  const predicted = (book, code) => {
    const found = bitsOf(book, code);
    return found === null ? "" : `The generator needs ${found.bits.toFixed(2)} bits for it. ` +
      (found.nearest.length ? `Nearest in its embedding: ${found.nearest.join(", ")}. ` : "");
  };
  const heat = (id, rows) => {
    const known = rows.flat().filter(bits => bits !== null), most = Math.max(...known, 1e-9);
    by(id).style.gridTemplateColumns = `repeat(${rows[0].length}, minmax(1.6rem, 1fr))`;
    for (const bits of rows.flat()) {
      const shown = make("span", bits === null ? "–" : bits.toFixed(1), by(id));
      if (bits !== null) shown.style.backgroundColor = `hsl(30 80% 50% / ${bits / most})`;
    }
  };
  if (data.statistics) {
    heat("bits-place", data.statistics.bits_by_place);
    heat("bits-time", [data.statistics.bits_by_time]);
  }

  const cell = (canvas, strip, row, index) => {
    const s = data.spatial;
    canvas.width = canvas.height = s;
    canvas.getContext("2d").drawImage(strip, index * s, row * s, s, s, 0, 0, s, s);
  };
  let tick = 0;
  const patch = () => {
    if (chosen && chosen.strip) cell(by("patch"), chosen.strip, chosen.row, tick % data.books[chosen.book].frames);
    else by("patch").getContext("2d").clearRect(0, 0, 999, 999);
  };

  function choose(book, code, place) {
    const of = data.books[book], row = of.codes.indexOf(code);
    chosen = {book, code, row, strip: row < 0 ? null : strips[book], ...place};
    patch();
    by("token").textContent = `${of.name} code ${code}`;
    const said = (place ? `At t=${place.t} h=${place.y} w=${place.x}. ` : "") + `Flat id ${of.offset + code}. ` +
      (row < 0 ? "" : `${of.counts[row]} times in ${data.counted < data.total ? "the counted" : "these"} clips. `) +
      predicted(book, code);
    by("about").textContent = said;
    by("places").replaceChildren();
    document.querySelectorAll(".atlas button").forEach(button => button.setAttribute("aria-pressed",
      Number(button.dataset.book) === book && Number(button.dataset.code) === code));
    show();
    const mine = chosen;
    source.places(book, code).then(async found => {
      const strip = found.patch ? await picture(found.patch) : null;
      if (mine !== chosen) return;
      if (strip) Object.assign(chosen, {strip, row: 0});
      patch();
      if (found.count > found.places.length)
        by("about").textContent = said + `Below are ${found.places.length} of ${found.count} occurrences.`;
      for (const spot of found.places) thumbnail(spot, book, code);
    }, error => { if (mine === chosen) by("about").textContent = said + error.message; });
  }

  async function thumbnail(spot, book, code) {
    const button = make("button", null, make("li", null, by("places"))), canvas = make("canvas", null, button);
    button.type = "button";
    const s = data.spatial, around = s * 3;
    canvas.width = canvas.height = around;
    const other = await source.clip(spot.index);
    const index = Math.min(spot.t === 0 ? 0 : (spot.t - 1) * data.temporal + 1, other.starts.length - 1);
    button.setAttribute("aria-label", `${other.key}, t=${spot.t} h=${spot.y} w=${spot.x}`);
    button.title = button.getAttribute("aria-label");
    button.onclick = async () => { await open(spot.index, index); choose(book, code, spot); };
    const sheet = await picture(other.decoded);
    const left = Math.max(0, Math.min(spot.x * s - s, other.width - around));
    const top = Math.max(0, Math.min(spot.y * s - s, other.height - around));
    const pen = canvas.getContext("2d");
    pen.drawImage(sheet, index % data.columns * other.width + left,
      Math.floor(index / data.columns) * other.height + top, around, around, 0, 0, around, around);
    pen.strokeStyle = "#fff";
    pen.strokeRect(spot.x * s - left + .5, spot.y * s - top + .5, s - 1, s - 1);
  }

  const pick = (x, y) => {
    if (!clip) return;
    const t = groupOf(frame);
    x = Math.max(0, Math.min(clip.grid[2] - 1, x));
    y = Math.max(0, Math.min(clip.grid[1] - 1, y));
    choose(bookOf(t), codeAt(clip, t, y, x), {t, y, x});
  };
  by("decoded").onclick = event => {
    const box = by("decoded").getBoundingClientRect();
    pick(Math.floor((event.clientX - box.left) / box.width * clip.width / data.spatial),
      Math.floor((event.clientY - box.top) / box.height * clip.height / data.spatial));
  };
  by("decoded").onkeydown = event => {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    pick((chosen && chosen.x || 0) + move[0], (chosen && chosen.y || 0) + move[1]);
  };
  by("scrub").oninput = () => { stop(); frame = Number(by("scrub").value); show(); };
  by("play").onclick = () => playing === null ? play() : stop();
  by("grid").onchange = show;

  const mark = () => document.querySelectorAll("#clips button").forEach((button, at) =>
    button.setAttribute("aria-current", shown[at] === current));

  async function list(from) {
    const mine = ++listed;
    const found = await source.list(from);
    if (mine !== listed) return;
    start = from;
    shown = found.clips.map(entry => entry.index);
    by("clips").replaceChildren();
    for (const entry of found.clips) {
      const button = make("button", entry.key, make("li", null, by("clips")));
      button.type = "button";
      make("small", `${entry.source.split("/").pop()}, ${entry.duration.toFixed(2)} s` +
        (entry.psnr === undefined || entry.psnr === null ? "" : `, ${entry.psnr.toFixed(1)} dB`), button);
      button.onclick = () => open(entry.index);
    }
    by("clips").scrollTop = 0;
    by("pages").hidden = source.total <= LIST && !words;
    by("range").textContent = found.total ? `${from + 1} to ${from + shown.length} of ${found.total}` : "none";
    by("earlier").disabled = from === 0;
    by("later").disabled = from + LIST >= found.total;
    mark();
  }
  by("earlier").onclick = () => list(Math.max(0, start - LIST));
  by("later").onclick = () => list(start + LIST);
  let typing = 0;
  by("search").oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      words = by("search").value.trim();
      list(0).catch(error => { by("pages").hidden = false; by("range").textContent = error.message; });
    }, 150);
  };
  by("goto").onchange = () => {
    const number = Math.round(Number(by("goto").value));
    if (number >= 1 && number <= source.total) open(number - 1);
  };

  const moving = [];
  document.querySelectorAll(".atlas").forEach(atlas => {
    const book = Number(atlas.dataset.book);
    data.books[book].codes.forEach((code, row) => {
      const button = make("button", null, atlas), canvas = make("canvas", null, button);
      button.append(String(code));
      const found = bitsOf(book, code);
      if (found !== null) make("small", ` ${found.bits.toFixed(1)} bits`, button);
      button.type = "button";
      button.dataset.book = book;
      button.dataset.code = code;
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `${data.books[book].name} code ${code}, ${data.books[book].counts[row]} times`);
      button.onclick = () => { choose(book, code); by("token").scrollIntoView({block: "nearest"}); };
      cell(canvas, strips[book], row, 0);
      if (data.books[book].frames > 1) moving.push([canvas, book, row]);
    });
  });
  if (!still) setInterval(() => {
    tick++;
    for (const [canvas, book, row] of moving) cell(canvas, strips[book], row, tick % data.books[book].frames);
    patch();
  }, 200);
  by("goto").max = source.total;
  await list(0);
  await open(0);
  document.body.dataset.ready = "yes";
})();
