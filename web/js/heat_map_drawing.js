// Drawing of coefficients: heat map layer × adapter, a strip per layer, use per adapter. Numbers and colors in, pixels
// out. The colors come from `lorweb_core/heat_map.py`, which draws the same as an image. Independent of ComfyUI.

const GROUND = 'rgb(42,43,50)'
const BAR = 'rgb(130,150,180)'
const MARK = 'rgba(255,255,255,0.85)'
const GAP = 4
const EDGE = 12
const STRIP = 56
const USE = 48

/** Decode what the node sent for one mix; arrays are base64, row by row. */
export function decodeMix(data) {
  const [layers, basisSize] = [data.layers, data.basis_size]
  return {
    layers,
    basisSize,
    all: data.mixes,
    isDifference: data.is_difference,
    values: decodeFloats(data.values), // NaN where a layer lacks an adapter
    strip: decodeFloats(data.strip),
    use: decodeFloats(data.use),
    cells: paint(decodeBytes(data.cell_colors), basisSize, layers.length),
    edge: paint(decodeBytes(data.edge_colors), 2, layers.length)
  }
}

function decodeBytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
}

function decodeFloats(text) {
  const view = new DataView(decodeBytes(text).buffer)
  return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true))
}

/** A canvas with one pixel per RGB color; enlarged without smoothing, it has sharp edges at any zoom. */
function paint(colors, width, height) {
  const canvas = document.createElement('canvas')
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d')
  const image = context.createImageData(width, height)
  for (let pixel = 0; pixel < width * height; pixel++) {
    image.data.set([...colors.subarray(3 * pixel, 3 * pixel + 3), 255], 4 * pixel)
  }
  context.putImageData(image, 0, 0)
  return canvas
}

/** The boxes of all parts, in CSS pixels, for a canvas of the given size. */
function layOut(width, height) {
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
  const { edge, map, strip, use } = layOut(width, height)
  context.setTransform(scale, 0, 0, scale, 0, 0)
  context.clearRect(0, 0, width, height)
  context.imageSmoothingEnabled = (map.height * scale) / mix.layers.length < 1
  context.drawImage(mix.edge, edge.x, edge.y, edge.width, edge.height)
  context.drawImage(mix.cells, map.x, map.y, map.width, map.height)
  drawBars(context, mix.strip, strip, { isHorizontal: true })
  const highest = Math.max(...mix.use, 1e-12)
  drawBars(context, mix.use.map((share) => share / highest), use, { isHorizontal: false })
  if (!mark) return
  const [row, column] = [map.height / mix.layers.length, map.width / mix.basisSize]
  const [y, markHeight] = mark.layer === null ? [map.y, map.height] : [map.y + mark.layer * row, row]
  const [x, markWidth] = mark.adapter === null ? [map.x, map.width] : [map.x + mark.adapter * column, column]
  context.strokeStyle = MARK
  context.lineWidth = 1
  context.strokeRect(x - 0.5, y - 0.5, Math.max(markWidth, 2) + 1, Math.max(markHeight, 2) + 1)
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

/** The layer and adapter under a point, in CSS pixels; either may be null. Null for a point outside all parts. */
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

/** The cell that arrow keys lead to; the first one if none is marked. */
export function moveCell(mix, mark, { rows, columns }) {
  if (!mark) return { layer: 0, adapter: 0 }
  const within = (place, count) => Math.min(Math.max(place, 0), count - 1)
  return {
    layer: within((mark.layer ?? mix.layers.length) + rows, mix.layers.length),
    adapter: within((mark.adapter ?? mix.basisSize) + columns, mix.basisSize)
  }
}

/** Text for a cell: names and numbers. */
export function describeCell(mix, { layer, adapter }, translate) {
  if (layer === null) {
    const use = mix.use[adapter]
    if (mix.isDifference) return translate('difference', { adapter, value: use.toFixed(4) })
    return translate('use', { adapter, value: `${(100 * use).toFixed(1)} %` })
  }
  const name = mix.layers[layer]
  const share = mix.strip[layer]
  const stripName = mix.isDifference ? 'cosine' : 'entropy'
  const strip = Number.isNaN(share) ? translate('off') : `${translate(stripName)} ${share.toFixed(3)}`
  if (adapter === null) return `${name} · ${strip}`
  const row = mix.values.subarray(layer * mix.basisSize, (layer + 1) * mix.basisSize)
  const value = row[adapter]
  if (Number.isNaN(value)) return translate('missing', { layer: name, adapter })
  const rank = 1 + row.filter((other) => Math.abs(other) > Math.abs(value)).length
  return translate('cell', { layer: name, adapter, value: value.toPrecision(4), rank, strip })
}
