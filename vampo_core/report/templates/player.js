const section = document.getElementById("videos"), seek = document.getElementById("seek");
const play = document.getElementById("play"), output = document.getElementById("frame");
const last = Number(seek.max), HOLD = 3;  // ticks that the last frame stays
let frame = 0, held = 0, playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

function show(number) {
  frame = number;
  section.style.setProperty("--f", frame);
  seek.value = frame;
  output.textContent = `${frame + 1} / ${last + 1}`;
}

function setPlaying(value) {
  playing = value;
  play.textContent = playing ? "Pause" : "Play";
}

setInterval(() => {
  if (!playing) return;
  if (frame === last && held++ < HOLD) return;
  held = 0;
  show(frame === last ? 0 : frame + 1);
}, 250);
play.addEventListener("click", () => setPlaying(!playing));
seek.addEventListener("input", () => { setPlaying(false); show(Number(seek.value)); });
show(0);
setPlaying(playing);
