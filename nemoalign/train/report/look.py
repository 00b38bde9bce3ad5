"""How a report looks, and the little it does: colours for light and dark, one column on a phone, values under the pointer."""

STYLE = """
:root { color-scheme: light dark; --ground: #fbfaf8; --card: #fff; --ink: #1d1f24; --soft: #6b7078;
  --rule: #e4e2dd; --train: #2f6fde; --val: #e0722b; --test: #7a4fd0; --good: #2b8a57; --bad: #c8402f;
  --trained: #dff3e4; --masked: #8a8f98; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171b; --card: #1d2026; --ink: #e6e7ea;
  --soft: #9aa0aa; --rule: #30343c; --train: #6ea2ff; --val: #f29a5c; --test: #b294f5; --good: #5cc48d;
  --bad: #f07a69; --trained: #1f3b2b; --masked: #7b818c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
p { margin: .3rem 0; } .soft, th, dt { color: var(--soft); } td .soft { font-size: .8rem; }
.state { border-radius: 99px; padding: .1rem .7rem; font-size: .85rem; font-weight: 600; color: #fff;
  background: var(--train); vertical-align: middle; white-space: nowrap; }
.state.finished { background: var(--good); } .state.diverged, .state.failed { background: var(--bad); }
.state.stopped, .state.interrupted { background: var(--val); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
dl div, figure, pre, .wide, details { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
dl div { padding: .5rem .7rem; } dt { font-size: .8rem; } dd { margin: 0; font-size: 1.05rem; font-weight: 600; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .8rem; }
figure { margin: 0; padding: .6rem .8rem .4rem; min-width: 0; } figure.loss { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; min-height: 1.6rem; }
figcaption output { margin-left: auto; font-size: .82rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.key { font-size: .82rem; } .key::before { content: ""; display: inline-block; width: .9rem; height: 3px;
  margin-right: .35rem; vertical-align: middle; background: var(--train); }
.key.val::before { background: var(--val); } .key.test::before { background: var(--test); }
.plot { position: relative; height: 11rem; margin: .5rem .6rem 1.6rem 3.6rem; touch-action: pan-y; }
.loss .plot { height: 17rem; }
.plot svg { position: absolute; width: 100%; height: 100%; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-width: 1.8px; stroke-linejoin: round; }
.plot .grid { stroke: var(--rule); stroke-width: 1px; } .line.train { stroke: var(--train); }
.line.raw { opacity: .3; stroke-width: 1px; } .val { stroke: var(--val); } .test { stroke: var(--test); }
.plot .dots { stroke-width: 6px; stroke-linecap: round; }
.plot span { position: absolute; white-space: nowrap; font-size: .75rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.plot .y { right: calc(100% + .4rem); transform: translateY(-50%); }
.plot .x { top: calc(100% + .2rem); transform: translateX(-50%); }
.plot i { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); display: none; }
.wide { overflow-x: auto; margin: .6rem 0; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem; vertical-align: top; border-top: 1px solid var(--rule);
  overflow-wrap: normal; } td { max-width: 32rem; overflow-wrap: anywhere; min-width: 4rem; }
thead th { border: 0; font-weight: 500; white-space: nowrap; } .wide .wide { border: 0; margin: 0; }
pre, code { font: .85rem/1.5 ui-monospace, monospace; }
pre { white-space: pre-wrap; padding: .7rem .9rem; margin: .5rem 0; unicode-bidi: plaintext; overflow: auto; max-height: 24rem; }
pre mark { background: var(--trained); color: inherit; border-radius: 3px; } pre .masked { color: var(--masked); }
pre .truncated { color: var(--bad); text-decoration: line-through; }
details { padding: .5rem .9rem; margin: .6rem 0; } summary { cursor: pointer; font-weight: 500; }
.warnings li { color: var(--bad); margin: .2rem 0; }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const holder = figure.querySelector("script"), plot = figure.querySelector(".plot");
  if (!holder || !plot) continue;
  const { range: [first, last], series } = JSON.parse(holder.textContent);
  const output = figure.querySelector("output"), cursor = plot.querySelector("i");
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; points[middle][0] <= step ? low = middle : high = middle; }
    return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
  };
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = first + part * (last - first), words = [], names = Object.keys(series);
    for (const name of names) {
      const [at, value] = nearest(series[name], step);
      words.push((names.length > 1 ? name + " " : "") + (value === null ? "not finite" : value) + " at " + at);
    }
    output.textContent = words.join(" \\u00b7 ");
    cursor.style.left = 100 * part + "%"; cursor.style.display = "block";
  };
  plot.addEventListener("pointermove", show); plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => { cursor.style.display = "none"; output.textContent = ""; });
}
"""
