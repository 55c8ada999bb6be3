"""The frame around a picture that is extended: what is added at each side, seen and dragged.

The frame is the value of an HTML component: {"picture": its address, "size": [W, H], and in pixels
each margin and the overlap}. Handles at its edges change the margins; sliders beside it say the
same in numbers, also for the keyboard.
"""

import base64
from io import BytesIO

import gradio as gr
from PIL import Image

from demo.requests import MARGINS, MOST_MARGIN

STEP_OF_MARGINS = 8
MOST_SEEN = (384, 384)
"""Pixels of the copy of the picture that is shown."""

FRAME = f"""
<div class="stage" role="img" aria-label="The picture in its frame; what is coloured will be drawn">
  <div class="frame"><img alt=""><div class="drawn"></div>
    {"".join(f'<span class="handle {side}" data-side="{side}"></span>' for side in MARGINS)}
  </div>
</div>
<p class="size"></p>
"""
FRAMING = """
const [stage, frame, picture, drawn, size] = ['.stage', '.frame', 'img', '.drawn', '.size'].map(
  name => element.querySelector(name));
let scale = 1, at = [0, 0];  // of the picture: its pixels on the screen, its place on the stage
const pixels = numbers => numbers.map(number => `${number}px`);

// Two thirds of the stage are the frame: the rest is where handles can be dragged to.
function draw() {
  element.classList.toggle('empty', !props.value);
  if (!props.value || !stage.clientWidth) return;
  const {size: [W, H], left, right, top, bottom} = props.value;
  const room = [stage.clientWidth, stage.clientHeight];
  const whole = [left + W + right, top + H + bottom];
  scale = Math.min(...room.map((length, i) => 0.66 * length / whole[i]));
  at = [left, top].map((margin, i) => (room[i] - scale * whole[i]) / 2 + scale * margin);
  if (picture.src !== props.value.picture) picture.src = props.value.picture;
  show(props.value);
}

function show({size: [W, H], left, right, top, bottom, overlap}) {
  const grown = [left + W + right, top + H + bottom];
  const thick = [top, right, bottom, left].map(margin => margin && scale * (margin + overlap));
  [frame.style.left, frame.style.top] = pixels([at[0] - scale * left, at[1] - scale * top]);
  [frame.style.width, frame.style.height] = pixels(grown.map(length => scale * length));
  [picture.style.left, picture.style.top] = pixels([scale * left, scale * top]);
  [picture.style.width, picture.style.height] = pixels([scale * W, scale * H]);
  drawn.style.borderWidth = pixels(thick).join(' ');
  size.textContent = `${grown.join('×')} pixels; what is coloured will be drawn.`;
}

stage.addEventListener('pointerdown', pressed => {
  const handle = pressed.target, side = handle.dataset.side, now = {...props.value};
  if (!side) return;
  const [along, outward] = {left: ['clientX', -1], right: ['clientX', 1], top: ['clientY', -1],
                            bottom: ['clientY', 1]}[side];
  handle.setPointerCapture(pressed.pointerId);
  handle.onpointermove = moved => {
    const pulled = props.value[side] + outward * (moved[along] - pressed[along]) / scale;
    now[side] = Math.min(MOST, Math.max(0, STEP * Math.round(pulled / STEP)));
    show(now);
  };
  handle.onpointerup = handle.onpointercancel = () => {
    handle.onpointermove = handle.onpointerup = handle.onpointercancel = null;
    props.value = now;
    draw();
    trigger('input');
  };
});
new ResizeObserver(draw).observe(stage);
watch('value', draw);
draw();
""".replace("MOST", str(MOST_MARGIN)).replace("STEP", str(STEP_OF_MARGINS))


def frame_view() -> gr.HTML:
    """The frame, empty until it is given what `frame_value` says."""
    return gr.HTML(html_template=FRAME, js_on_load=FRAMING, elem_id="frame")


def frame_value(image: Image.Image, size: list[int], margins: dict[str, int], overlap: int) -> dict:
    """The frame's value for a picture of this size, which the image shows, and what is added."""
    seen, file = image.copy(), BytesIO()
    seen.thumbnail(MOST_SEEN)
    seen.save(file, "JPEG")
    address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"picture": address, "size": size, **margins, "overlap": overlap}
