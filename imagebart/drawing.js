// The canvas of drawing.MaskCanvas: a stroke is a list of points [x, y], in pixels of the picture.
function render({ model, el }) {
  const [width, height] = model.get("size");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const clear = Object.assign(document.createElement("button"), { textContent: "clear" });
  const picture = new Image(), pen = canvas.getContext("2d");
  let strokes = model.get("value");

  function draw() {
    pen.drawImage(picture, 0, 0, width, height);
    Object.assign(pen, { lineWidth: model.get("brush"), lineCap: "round", lineJoin: "round" });
    pen.strokeStyle = model.get("colour");
    for (const stroke of strokes) {
      pen.beginPath();
      pen.moveTo(...stroke[0]);
      for (const point of stroke) pen.lineTo(...point);
      pen.stroke();
    }
  }
  function place({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    const at = [(clientX - box.left) / box.width * width, (clientY - box.top) / box.height * height];
    return at.map(Math.round);
  }
  function send() {
    model.set("value", strokes);
    model.save_changes();
  }

  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    strokes = [...strokes, [place(event)]];
    draw();
  };
  canvas.onpointermove = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(place(event));
    draw();
  };
  canvas.onpointerup = send;
  clear.onclick = () => { strokes = []; draw(); send(); };
  model.on("change:value", () => { strokes = model.get("value"); draw(); });

  Object.assign(canvas.style, { height: "256px", touchAction: "none", cursor: "crosshair" });
  picture.onload = draw;
  picture.src = model.get("picture");
  el.append(canvas, document.createElement("br"), clear);
}
export default { render };
