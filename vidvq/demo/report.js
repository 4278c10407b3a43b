// Videos play while they can be seen, unless the reader prefers stillness or paused them.
const videos = [...document.querySelectorAll("video")];
const toggle = document.getElementById("toggle");
const inView = new Set();
let moving = !matchMedia("(prefers-reduced-motion: reduce)").matches;

function show() {
  toggle.textContent = moving ? "Pause all videos" : "Play videos";
}
function play(video) {
  video.play().catch(() => {});
}
toggle.hidden = videos.length === 0;
toggle.addEventListener("click", () => {
  moving = !moving;
  for (const video of videos) {
    delete video.dataset.held;
    if (moving && inView.has(video)) play(video);
    else video.pause();
  }
  show();
});
show();

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      inView.add(target);
      if (moving && !target.dataset.held) play(target);
    } else if (inView.delete(target)) {
      if (target.paused) target.dataset.held = "yes";
      else delete target.dataset.held;
      target.pause();
    }
  }
}, { threshold: 0.25 });
for (const video of videos) {
  observer.observe(video);
  video.addEventListener("error", () => {
    video.closest("article").querySelector("details").open = true;
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
