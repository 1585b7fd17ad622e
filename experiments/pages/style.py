"""How pages look: one column on a telephone, two on a screen; light or dark as the reader has it."""

STYLE = """
:root { color-scheme: light dark; --text: #222; --faint: #5c5c5c; --line: #ddd; --back: #fff; --box: #f4f4f5;
  --good: #1a6e2e; --bad: #a50f15; --good-box: #e6f2e8; --bad-box: #fdeeea; --note: #fff7e0; --note-line: #e0a800 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --faint: #a5a5a5; --line: #3d3d3d; --back: #17181a;
  --box: #222428; --good: #79c98b; --bad: #ff8a80; --good-box: #1c3323; --bad-box: #3f2020; --note: #38301a } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--back); overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem }
figure { margin: 0 } figcaption, .faint { color: var(--faint) }
img { max-width: 100%; image-rendering: pixelated } .plot { margin: .5rem 0 }
.plot img { image-rendering: auto; background: #fff; border-radius: 4px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
.large img { width: 100%; border-radius: 4px }
.scroll { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th { color: var(--faint); font-weight: 600 } td:first-child, th:first-child { text-align: left }
td { white-space: nowrap } .words td, .last td:last-child { white-space: normal }
.words td, .words th { text-align: left }
.last td:last-child, .last th:last-child { text-align: left; min-width: 16rem }
pre { background: var(--box); padding: 1rem; overflow-x: auto; border-radius: 4px; font-size: .85rem }
details { border-top: 1px solid var(--line); padding: .5rem 0 } summary { cursor: pointer; font-weight: 600 }
p.good, p.bad, p.note, p.plain { padding: .6rem 1rem; border-left: 4px solid var(--line); background: var(--box) }
p.good { border-color: var(--good); background: var(--good-box) }
p.bad { border-color: var(--bad); background: var(--bad-box) }
p.note { border-color: var(--note-line); background: var(--note) }
td.good { color: var(--good) } td.bad { color: var(--bad); font-weight: 600 }
.map td { text-align: center } .map td:first-child { text-align: left }
td.even { background: var(--good-box) } td.better { background: #5b9bd533 } td.worse1 { background: #f7a88955 }
td.worse2 { background: #f08a62aa; color: #222 } td.worse3 { background: #d9573f; color: #fff }
td.marked { font-weight: 700; outline: 2px solid var(--bad); outline-offset: -2px }
ul.named { border-left: 4px solid var(--bad); background: var(--bad-box); padding: .5rem 1rem .5rem 2rem }
@media print { details { display: block } }
"""
