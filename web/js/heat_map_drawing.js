// Drawing of coefficients: heat map layer × adapter, a strip per layer, use per adapter. Numbers in, pixels out.
// `lorweb_core/heat_map.py` draws the same with PIL; keep colors and layout in step. Independent of ComfyUI.
// Colors: a difference is always blue ← white → red, and so are coefficients if any is below 0.

const SEQUENTIAL = [[12, 10, 30], [87, 22, 110], [187, 55, 84], [249, 142, 9], [252, 255, 200]]
const DIVERGING = [[20, 60, 160], [120, 165, 220], [245, 245, 245], [235, 145, 110], [165, 20, 35]]
const BACKGROUND = [30, 31, 36]
const GROUND = 'rgb(42,43,50)'
const BAR = 'rgb(130,150,180)'
const MARK = 'rgba(255,255,255,0.85)'
const KIND_COLORS = { transformer_blocks: 'rgb(72,118,190)', single_transformer_blocks: 'rgb(96,160,96)' }
const PART_COLORS = { modulation: 'rgb(214,160,60)', attention: 'rgb(190,90,160)', mlp: 'rgb(90,180,190)' }
const OTHER_COLOR = 'rgb(120,120,120)'
const GAP = 4
const EDGE = 12
const STRIP = 56
const USE = 48

/** Decode what the node sent for one mix: base64 of little-endian float32 → Float32Array. */
export function decodeMix(data) {
  const values = decodeFloats(data.values)
  const basisSize = data.basis_size
  const mix = {
    layers: data.layers,
    parts: data.parts,
    basisSize,
    values,
    strip: decodeFloats(data.strip),
    stripName: data.strip_name,
    isDifference: data.is_difference
  }
  return { ...mix, use: adapterUse(mix), cells: drawCells(mix) }
}

/** Where everything is, in CSS pixels, for a canvas of the given size. */
export function layOut(width, height) {
  const left = EDGE + GAP
  const mapWidth = Math.max(1, width - left - GAP - STRIP)
  const mapHeight = Math.max(1, height - GAP - USE)
  return {
    edge: { x: 0, y: 0, width: EDGE, height: mapHeight },
    map: { x: left, y: 0, width: mapWidth, height: mapHeight },
    strip: { x: left + mapWidth + GAP, y: 0, width: STRIP, height: mapHeight },
    use: { x: left, y: mapHeight + GAP, width: mapWidth, height: USE }
  }
}

/** Draw one mix; `scale` is device pixels per CSS pixel, `mark` the cell under the mouse or null. */
export function drawMix(context, mix, { width, height, scale, mark }) {
  const boxes = layOut(width, height)
  context.setTransform(scale, 0, 0, scale, 0, 0)
  context.clearRect(0, 0, width, height)
  drawEdge(context, mix, boxes.edge)
  context.imageSmoothingEnabled = (boxes.map.height * scale) / mix.layers.length < 1
  context.drawImage(mix.cells, boxes.map.x, boxes.map.y, boxes.map.width, boxes.map.height)
  drawBars(context, mix.strip, boxes.strip, { isHorizontal: true })
  const highest = Math.max(...mix.use, 1e-12)
  drawBars(context, mix.use.map((share) => share / highest), boxes.use, { isHorizontal: false })
  if (mark) drawMark(context, mix, boxes, mark)
}

/** The layer and adapter under a point, in CSS pixels; either may be null. Null when the point is beside everything. */
export function findCell(mix, { width, height, x, y }) {
  const { map, use } = layOut(width, height)
  const row = Math.floor(((y - map.y) / map.height) * mix.layers.length)
  const column = Math.floor(((x - map.x) / map.width) * mix.basisSize)
  const isRow = row >= 0 && row < mix.layers.length
  const isColumn = column >= 0 && column < mix.basisSize
  const isInUse = y >= use.y && y < use.y + use.height && isColumn
  if (!isRow && !isInUse) return null
  return { layer: isRow ? row : null, adapter: isColumn ? column : null }
}

/** Text for a cell: names and numbers. `translate` translates. */
export function describeCell(mix, { layer, adapter }, translate) {
  if (layer === null) {
    const use = mix.use[adapter]
    if (mix.isDifference) return translate('difference', { adapter, value: use.toFixed(4) })
    return translate('use', { adapter, value: `${(100 * use).toFixed(1)} %` })
  }
  const name = mix.layers[layer]
  const isOff = Number.isNaN(mix.strip[layer])
  const strip = isOff ? translate('off') : `${translate(mix.stripName)} ${mix.strip[layer].toFixed(3)}`
  if (adapter === null) return `${name} · ${strip}`
  const row = mix.values.subarray(layer * mix.basisSize, (layer + 1) * mix.basisSize)
  const value = row[adapter]
  if (Number.isNaN(value)) return translate('missing', { layer: name, adapter })
  const rank = 1 + row.filter((other) => Math.abs(other) > Math.abs(value)).length
  return translate('cell', { layer: name, adapter, value: value.toPrecision(4), rank, strip })
}

/** The cell that arrow keys lead to; the first one when none is marked. */
export function moveCell(mix, mark, { rows, columns }) {
  if (!mark) return { layer: 0, adapter: 0 }
  const within = (place, count) => Math.min(Math.max(place, 0), count - 1)
  return {
    layer: within((mark.layer ?? mix.layers.length) + rows, mix.layers.length),
    adapter: within((mark.adapter ?? mix.basisSize) + columns, mix.basisSize)
  }
}

function decodeFloats(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
  const view = new DataView(bytes.buffer)
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true))
}

function adapterUse({ values, basisSize, layers, isDifference }) {
  const use = new Array(basisSize).fill(0)
  let counted = 0
  for (let layer = 0; layer < layers.length; layer++) {
    const row = Array.from(values.subarray(layer * basisSize, (layer + 1) * basisSize), (v) => Math.abs(v) || 0)
    const amount = row.reduce((sum, value) => sum + value, 0)
    if (!isDifference && amount === 0) continue
    counted += 1
    row.forEach((value, adapter) => (use[adapter] += isDifference ? value : value / amount))
  }
  return use.map((sum) => sum / Math.max(counted, 1))
}

/** One pixel per cell; the browser enlarges it without smoothing, so cells have sharp edges at any zoom. */
function drawCells({ values, basisSize, layers, isDifference }) {
  const canvas = document.createElement('canvas')
  canvas.width = basisSize
  canvas.height = layers.length
  const context = canvas.getContext('2d')
  const image = context.createImageData(basisSize, layers.length)
  const known = Array.from(values, (value) => value || 0)
  const highest = known.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12)
  const isSigned = isDifference || known.some((value) => value < 0)
  values.forEach((value, index) => {
    const relative = Math.sign(value) * Math.sqrt(Math.abs(value) / highest)
    const place = isSigned ? (relative + 1) / 2 : relative
    const color = Number.isNaN(value) ? BACKGROUND : blend(isSigned ? DIVERGING : SEQUENTIAL, place)
    image.data.set([...color, 255], 4 * index)
  })
  context.putImageData(image, 0, 0)
  return canvas
}

function blend(stops, place) {
  const position = Math.min(Math.max(place, 0), 1) * (stops.length - 1)
  const lower = Math.min(Math.floor(position), stops.length - 2)
  return stops[lower].map((from, channel) => Math.round(from + (stops[lower + 1][channel] - from) * (position - lower)))
}

function drawEdge(context, mix, box) {
  const row = box.height / mix.layers.length
  mix.layers.forEach((name, index) => {
    context.fillStyle = KIND_COLORS[name.split('.')[0]] ?? OTHER_COLOR
    context.fillRect(box.x, box.y + index * row, box.width / 2, row + 0.5)
    context.fillStyle = PART_COLORS[mix.parts[index]] ?? OTHER_COLOR
    context.fillRect(box.x + box.width / 2, box.y + index * row, box.width / 2, row + 0.5)
  })
}

function drawBars(context, shares, box, { isHorizontal }) {
  context.fillStyle = GROUND
  context.fillRect(box.x, box.y, box.width, box.height)
  context.fillStyle = BAR
  const step = (isHorizontal ? box.height : box.width) / shares.length
  shares.forEach((share, index) => {
    const length = Math.min(Math.max(share, 0), 1)
    if (isHorizontal) context.fillRect(box.x, box.y + index * step, length * box.width, step + 0.25)
    else context.fillRect(box.x + index * step, box.y, step + 0.25, length * box.height)
  })
}

function drawMark(context, mix, { map }, { layer, adapter }) {
  context.strokeStyle = MARK
  context.lineWidth = 1
  const row = map.height / mix.layers.length
  const column = map.width / mix.basisSize
  const y = layer === null ? map.y : map.y + layer * row
  const x = adapter === null ? map.x : map.x + adapter * column
  const height = layer === null ? map.height : row
  const width = adapter === null ? map.width : column
  context.strokeRect(x - 0.5, y - 0.5, Math.max(width, 2) + 1, Math.max(height, 2) + 1)
}
