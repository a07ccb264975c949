// Keys, and the video with its clips. Every page works without this file; nothing from data is run or made into HTML.
"use strict";

const video = document.querySelector("video");
const clips = [...document.querySelectorAll("[data-start]")];
const rows = [...document.querySelectorAll(".pairs > li > a")];
const help = document.getElementById("help");

function follow(relation) {
  const link = document.querySelector(`a[rel="${relation}"]`);
  if (link) link.click();
}

function step(by) {
  if (!rows.length) return follow(by > 0 ? "next" : "prev");
  const at = rows.indexOf(document.activeElement) + by;
  if (at >= rows.length) follow("next");
  else if (at < 0 && by < 0) follow("prev");
  else rows[Math.max(at, 0)].focus();
}

function jump(clip) {
  video.currentTime = Number(clip.dataset.start);
  video.play();
}

function number(digit) {
  if (video) {
    if (clips[digit - 1]) jump(clips[digit - 1]);
  } else {
    const filter = document.querySelectorAll(".show a")[digit - 1];
    if (filter) filter.click();
  }
}

const keys = {
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  u: () => follow("up"),
  "/": () => document.querySelector("input[type=search]")?.select(),
  "?": () => (help.open ? help.close() : help.showModal()),
};
if (video) keys[" "] = () => (video.paused ? video.play() : video.pause());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, video")) return;
  if (help.open && event.key !== "?") return;
  const action = /^[1-9]$/.test(event.key) ? () => number(Number(event.key)) : keys[event.key];
  if (!action || (event.key === " " && event.target.matches("button, summary, a"))) return;
  event.preventDefault();
  action();
});

document.getElementById("ask").addEventListener("click", () => help.showModal());

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "copied";
  });
}

if (video) {
  const says = document.getElementById("video-says");
  const waiting = setTimeout(() => {
    if (video.readyState === 0 && !video.error) says.textContent = "Getting the video ready: a copy that browsers play is made once.";
  }, 1500);
  video.addEventListener("loadedmetadata", () => {
    clearTimeout(waiting);
    says.textContent = "";
  });
  const explain = async () => {
    clearTimeout(waiting);
    const reply = await fetch(video.src, { headers: { Range: "bytes=0-0" } });
    says.textContent = reply.ok ? "This browser cannot play the video." : await reply.text();
  };
  video.addEventListener("error", explain);
  if (video.error) explain(); // it came before this file
  for (const clip of clips) clip.addEventListener("click", () => jump(clip));
  video.addEventListener("timeupdate", () => {
    for (const clip of clips) {
      const now = video.currentTime >= Number(clip.dataset.start) && video.currentTime < Number(clip.dataset.end);
      clip.classList.toggle("now", now);
    }
  });
}
