"""The page's theme and style sheet."""

import gradio as gr

PAINT, SEEN = "#ff9a3c", 0.65
"""Colour and opacity of a mask: opaque by half is marked, and the picture shines through."""
FONT = ("ui-sans-serif", "system-ui", "Helvetica", "Arial", "sans-serif")
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="slate", radius_size="lg", font=FONT).set(
    button_secondary_background_fill="*neutral_100",
    button_secondary_background_fill_hover="*neutral_200",
    button_large_text_weight="500",
    # white on teal 700, and slate 600 on white, are read easily: 5.5 and 7.6 to 1
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*neutral_700",
    block_label_text_color="*neutral_700",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_large_text_size="*text_md",
    # empty boxes are seen: 4.8 and 5.7 to 1
    checkbox_border_color="*neutral_500",
    checkbox_border_color_dark="*neutral_400",
)
CSS = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1120px !important; }
.gradio-container { margin: 0 auto !important; }
.gradio-container .main { padding: 16px min(32px, 3vw) !important; }
#title h1 { margin-bottom: 0.2rem; }
#title p { color: var(--body-text-color-subdued); font-size: var(--text-lg); }

/* galleries: as tall as their content; a shelf has small images, tiles are results */
.shelf .grid-wrap, .tiles .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
.shelf .grid-container, .tiles .grid-container { grid-template-rows: none !important;
  grid-auto-rows: auto !important; }
.shelf .grid-container { grid-template-columns: repeat(auto-fill, var(--thumb)) !important; }
.tiles .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(220px, 40vw), 1fr)) !important; }
#samples, #samples .empty { min-height: min(540px, 90vw); }
#samples .grid-container {
  grid-template-columns: repeat(auto-fit, minmax(min(220px, 40vw), 1fr)) !important; }
.tiles:has(.preview) { min-height: min(420px, 90vw); }
.shelf .caption-label { max-width: 100% !important; }
.thumbnail-item:hover .caption-label { opacity: 1 !important; }  /* it stays easy to read */
.shelf .empty { min-height: 150px !important; }
#chain, #first-result, #visit { --thumb: min(150px, 38vw); }
#levels, #redrawn { --thumb: min(180px, 42vw); }
#examples, #starts, #maps { --thumb: 64px; }
#examples .thumbnail-item, #maps .thumbnail-item, #starts .thumbnail-item { aspect-ratio: 1;
  height: auto; }

/* images that fill their frame; a panorama scrolls */
#forget img, #noisy img, #read img, #tokens img, #preview img {
  width: 100%; height: 100%; object-fit: contain; }
#read img { image-rendering: pixelated; }
#panorama .image-frame { overflow-x: auto; width: 100%; justify-content: flex-start; }
#panorama img { flex: none; width: auto; height: auto; min-width: 100%; min-height: 160px;
  max-width: none; max-height: none; object-fit: contain; }

/* tools stand beside the picture that is painted on, not over it */
#editor .pixi-target, #painting .pixi-target { left: 56px; width: calc(100% - 56px); }

/* how far a job is */
[id$=-status][style*=--done] { border-bottom: 3px solid var(--border-color-primary);
  border-image: linear-gradient(to right, var(--primary-500) var(--done),
    var(--border-color-primary) var(--done)) 1; }

/* a picture that is extended, in its frame */
#frame.empty, .empty > .stage { display: none; }
.stage { position: relative; height: 280px; overflow: hidden; border-radius: 8px;
  background: var(--background-fill-secondary); }
.frame, .frame img, .drawn, .handle { position: absolute; }
.frame img { max-width: none; margin: 0; }
.drawn { inset: 0; box-sizing: border-box; border: 0 solid PAINT; opacity: SEEN; }
.frame { outline: 2px solid PAINT; }
.handle { touch-action: none; cursor: ew-resize; width: 32px; height: 100%; min-height: 32px;
  top: 50%; transform: translate(-50%, -50%); }
.handle.left { left: 0; }
.handle.right { left: 100%; }
.handle.top, .handle.bottom { cursor: ns-resize; width: 100%; min-width: 32px; height: 32px;
  left: 50%; }
.handle.top { top: 0; }
.handle.bottom { top: 100%; }
.handle::after { content: ""; position: absolute; inset: 0; margin: auto; width: 14px; height: 14px;
  border-radius: 50%; background: white; border: 3px solid PAINT; }
.size { margin: 4px 0; font-size: var(--text-sm); color: var(--body-text-color-subdued); }

.legend { display: flex; flex-wrap: wrap; gap: 4px; font-size: var(--text-sm); }
.legend button { margin: 0; padding: 2px 8px; border: 2px solid transparent; border-radius: 6px; }
.legend button:hover { background: var(--button-secondary-background-fill-hover); }
.legend button[aria-pressed=true] { border-color: var(--color-accent); }
.legend i { display: inline-block; width: 14px; height: 14px; margin-right: 5px; border-radius: 4px;
  vertical-align: -2px; border: 1px solid var(--border-color-primary); }
.dark .tab-container, .dark .legend { --color-accent: var(--primary-400); }
footer .divider { display: none; }
.words { gap: 6px; }
.words button { font-weight: 400; flex: 0 0 auto; min-width: 0 !important; }

@media (max-width: 600px) {
  #title p { font-size: var(--text-md); }
  .tab-container button { padding: 0 7px; font-size: var(--text-sm); }

  /* the tools of an editor are a row below it */
  #editor .pixi-target, #painting .pixi-target { left: 0; width: 100%;
    height: calc(100% - 48px); }
  .toolbar-wrap:has(> .half-container) { flex-direction: row !important; width: auto !important;
    inset: auto 15px 8px !important; }
  .toolbar-wrap > .half-container { flex-direction: row !important; justify-content: center;
    position: static; padding: 0 4px; }
  .toolbar-wrap > .half-container .wrap { inset: auto auto 36px 0 !important;
    transform: none !important; }

  /* results come before what else can be said */
  #make > .column:first-child { display: contents; }
  #make > .column:first-child > :nth-child(n + 5) { order: 2; }
  #make > .column:last-child { order: 1; }
}
""".replace("PAINT", PAINT).replace("SEEN", str(SEEN))
SCRIPT = """() => {
  // Names: an empty picture is one, a button is called what is seen on it, also if that is a
  // picture, and the arrow beside before and after does not take an edit back.
  const mend = () => {
    document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(
      one => one.setAttribute('role', 'img'));
    document.querySelectorAll('button[aria-label]').forEach(
      one => one.textContent.trim() && one.removeAttribute('aria-label'));
    document.querySelectorAll('button:not([aria-label]):has(img)').forEach(
      one => one.textContent.trim() || one.setAttribute('aria-label', 'Picture'));
    document.querySelectorAll('#compare button[title=Undo]').forEach(one => {
      one.title = 'Reset the zoom';
      one.setAttribute('aria-label', one.title);
    });
  };
  // The bar of a job: how far its status says that it is.
  const measure = () => document.querySelectorAll('[id$=-status]').forEach(line => {
    const done = /^Drawing: (\\d+%)/.exec(line.textContent.trim())?.[1];
    if (done) line.style.setProperty('--done', done);
    else line.style.removeProperty('--done');
  });
  new MutationObserver(() => { mend(); measure(); }).observe(
    document.body, {childList: true, subtree: true, characterData: true});
  mend();

  // A file that is dropped goes to the upload button of its part of the page.
  const UPLOADS = 'input[type=file][data-testid$="-upload-button"]';
  const inputOf = event => event.dataTransfer?.types.includes('Files')
    && event.target.closest?.('.takes-files')
      ?.querySelector(UPLOADS);
  document.addEventListener('dragover', event => inputOf(event) && event.preventDefault());
  const give = (input, event, files) => {
    event.preventDefault();
    input.files = files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
  };
  document.addEventListener('drop', event => {
    const input = inputOf(event);
    if (input) give(input, event, event.dataTransfer.files);
  });
  // A picture that is pasted goes to the editor of photographs, where that is seen.
  document.addEventListener('paste', event => {
    const editor = document.getElementById('editor'), files = event.clipboardData?.files;
    const input = editor?.closest('.takes-files').querySelector(UPLOADS);
    if (input && files?.length && editor.offsetParent) give(input, event, files);
  });
}"""
"""What the browser does beyond gradio's own: for screen readers, and for files that are dropped or
pasted."""
