// Players: one at a time, a position line on the spectrogram, loudness matching. Tables: sorting. Commands: copying.
(() => {
  "use strict";
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const match = document.getElementById("match-loudness");
  const audios = [];

  for (const player of document.querySelectorAll(".player")) {
    const audio = player.querySelector("audio");
    const controls = player.querySelector(".controls");
    const button = controls.querySelector("button");
    const slider = controls.querySelector("input");
    const time = controls.querySelector(".time");
    const picture = player.querySelector(".spectrogram");
    const head = player.querySelector(".playhead");
    const duration = Number(player.dataset.duration);
    if (!audio.canPlayType(player.dataset.mime)) {
      player.querySelector(".unsupported").hidden = false;
      continue;
    }
    audios.push({ audio, gain: Number(player.dataset.gain) });
    audio.controls = false;
    controls.hidden = false;

    const show = () => {
      const now = Math.min(audio.currentTime, duration);
      slider.value = now;
      slider.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${duration.toFixed(1)} seconds`);
      time.textContent = clock(now);
      if (head) head.style.left = `${(100 * now) / duration}%`;
    };
    const follow = () => {
      show();
      if (!audio.paused) requestAnimationFrame(follow);
    };
    const mark = () => {
      const playing = !audio.paused;
      player.classList.toggle("playing", playing);
      button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${player.dataset.name}`);
    };
    button.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
    slider.addEventListener("input", () => {
      audio.currentTime = Number(slider.value);
      show();
    });
    if (picture) {
      picture.addEventListener("click", (event) => {
        const box = picture.getBoundingClientRect();
        audio.currentTime = (duration * (event.clientX - box.left)) / box.width;
        show();
      });
    }
    audio.addEventListener("play", () => {
      for (const other of audios) if (other.audio !== audio) other.audio.pause();
      mark();
      follow();
    });
    audio.addEventListener("pause", mark);
    audio.addEventListener("seeked", show);
    audio.addEventListener("ended", () => {
      audio.currentTime = 0;
      mark();
      show();
    });
    show();
  }

  if (match) {
    const level = () => {
      for (const { audio, gain } of audios) audio.volume = match.checked ? gain : 1;
    };
    match.closest("label").hidden = audios.length === 0;
    match.addEventListener("change", level);
    level();
  }

  for (const figure of document.querySelectorAll("figure.sortable")) {
    const table = figure.querySelector("table.sortable");
    if (!table) continue;
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((head) => head.firstChild.textContent.trim());
    const chooser = figure.querySelector(".choice select");
    const told = figure.querySelector("[role=status]");
    const inOrder = [...body.rows];

    const show = (count) => [...body.rows].forEach((row, place) => (row.hidden = count > 0 && place >= count));
    const sort = (place, up) => {
      heads.forEach((head, other) => {
        if (other !== place) head.removeAttribute("aria-sort");
        else head.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
      const numeric = heads[place].dataset.sort === "number";
      const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
      const gap = (row) => row.cells[place].querySelector(".gap") !== null || (numeric && key(row) === "");
      body.append(
        ...inOrder.slice().sort((a, b) => {
          if (gap(a) || gap(b)) return gap(a) - gap(b); // gaps stay last
          const way = numeric ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b), undefined, { numeric: true });
          return up ? way : -way;
        }),
      );
    };
    const tell = (place, up) => {
      const shown = [...body.rows].filter((row) => !row.hidden).length;
      told.textContent = `${shown} of ${inOrder.length} rows, by ${names[place]}, ${up ? "ascending" : "descending"}`;
    };
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        sort(place, up);
        if (chooser) chooser.value = "";
        show(0);
        tell(place, up);
      });
    });
    if (chooser) {
      const choose = () => {
        const option = chooser.selectedOptions[0];
        if (option.value === "") {
          heads.forEach((head) => head.removeAttribute("aria-sort"));
          body.append(...inOrder);
          show(0);
          told.textContent = `all ${inOrder.length} rows, in their own order`;
          return;
        }
        const [place, up] = [Number(option.value), option.dataset.way === "ascending"];
        sort(place, up);
        show(Number(option.dataset.rows));
        tell(place, up);
      };
      chooser.addEventListener("change", choose);
      chooser.closest(".choice").hidden = false;
      const first = chooser.querySelector("[data-first]");
      if (first) {
        first.selected = true;
        choose();
        told.textContent = "";
      }
    }
  }

  for (const block of document.querySelectorAll(".commands")) {
    const button = block.querySelector("button");
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
})();
