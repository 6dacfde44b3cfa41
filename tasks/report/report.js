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

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
        const numeric = head.classList.contains("number");
        const rows = [...body.rows].sort((a, b) => {
          const [p, q] = [key(a), key(b)];
          if (!numeric) return p.localeCompare(q) * (up ? 1 : -1);
          if (p === "" || q === "") return (p === "") - (q === ""); // gaps stay last
          return (Number(p) - Number(q)) * (up ? 1 : -1);
        });
        body.append(...rows);
      });
    });
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
