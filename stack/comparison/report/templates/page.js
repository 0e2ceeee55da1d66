"use strict";
// Without this script every picture is in the gallery; with it two of them lie on each other.
const section = document.getElementById("pictures");
if (section) {
  const at = (name) => section.querySelector("#" + name);
  const groups = [...section.querySelectorAll(".scene")];
  let shown = {};

  const put = (holder, source) => holder.replaceChildren(...source.map(([frame, over]) => {
    const copy = frame.cloneNode(true);
    copy.classList.toggle("over", over);
    return copy;
  }));

  const show = () => {
    const scene = groups[at("prompt").selectedIndex];
    const buttons = [...scene.querySelectorAll("button")];
    const base = buttons[0];
    const chosen = buttons.find((button) => button.dataset.row === shown.row) || buttons[buttons.length - 1];
    groups.forEach((group) => { group.hidden = group !== scene; });
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));
    const pair = [[base.querySelector(".frame"), false], [chosen.querySelector(".frame"), true]];
    put(at("cut-view"), pair);
    put(at("difference-view"), pair);
    at("right-name").textContent = chosen.dataset.row;
    for (const view of [at("cut-view"), at("difference-view")]) {
      view.style.setProperty("--shape", base.querySelector(".frame").style.getPropertyValue("--shape"));
    }
  };
  const cut = () => at("cut-view").style.setProperty("--cut", at("cut").value + "%");
  const amplify = () => at("difference-view").style.setProperty("--amplify", at("amplify").value);

  section.addEventListener("click", (event) => {
    const button = event.target.closest(".gallery button");
    if (button) { shown = { row: button.dataset.row }; show(); }
  });
  at("prompt").addEventListener("change", show);
  at("cut").addEventListener("input", cut);
  at("amplify").addEventListener("change", amplify);
  shown = { row: section.dataset.row };
  at("viewer").hidden = false;
  show(); cut(); amplify();

  const play = at("play");
  if (play) {
    const frames = Number(section.dataset.frames), columns = Number(section.dataset.columns);
    const go = (frame) => {
      section.style.setProperty("--column", frame % columns);
      section.style.setProperty("--line", Math.floor(frame / columns));
      at("frame").value = frame;
    };
    let timer = 0;
    const playing = (on) => {
      clearInterval(timer);
      timer = on ? setInterval(() => go((Number(at("frame").value) + 1) % frames), Number(section.dataset.ms)) : 0;
      play.textContent = on ? "Pause" : "Play";
    };
    play.addEventListener("click", () => playing(!timer));
    at("frame").addEventListener("input", () => { playing(false); go(Number(at("frame").value)); });
    playing(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  }
}
