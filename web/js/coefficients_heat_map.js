// The heat map on Preview Coefficients: layer × adapter, a strip per layer, use per adapter, and the names and numbers of
// the cell under the mouse. The colors come from `lorweb_core/heat_map.py`, which draws the same as an image.

import { app } from '../../../scripts/app.js'
import { addElement, keepMinWidth, onResult, passWheelTo } from './node_results.js'
import { translate } from './translations.js'

const NODE = 'LoRWeBPreviewCoefficients'
const MIN_HEIGHT = 340
const MIN_WIDTH = 400
/** Each part is drawn once, about as large as it may be shown, and scaled by CSS, so that it is sharp at any zoom. */
const DRAWN_PX = 1024
/** Pixels per row; 1 in maps of hundreds of layers, as the browser drops rows when it scales down by much. */
const drawnStep = (total, count) => (count > total / 4 ? 1 : Math.floor(total / count))
const DRAWN_BAR_PX = 512
const DRAWN_EDGE_PX = 64
/** With more layers the mouse cannot reach every row, and the line mentions the arrow keys. */
const MANY_LAYERS = 150
/** ComfyUI's color for text on node inputs, dark in light palettes. */
const FAINT = 'color:var(--input-text,#bbb)'
const GRID =
  'flex:1 1 0; min-height:0; display:grid; gap:4px; cursor:crosshair;' +
  'grid-template:"edge cells strip" minmax(0,1fr) ". use ." 48px / 12px minmax(0,1fr) 56px'
const FILL = 'width:100%; height:100%; min-width:0; min-height:0; display:block'
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }

class HeatMap {
  constructor() {
    this.mixes = []
    this.shown = 0
    this.mark = null // { layer, adapter }, either may be null: a whole column or row
    const column = 'display:flex; flex-direction:column; gap:4px; width:100%; height:100%'
    this.element = make('div', 'lorweb-heat-map', `${column}; min-height:${MIN_HEIGHT}px`)
    this.pager = make('div', '', `display:none; gap:8px; align-items:center; font:11px sans-serif; ${FAINT}`)
    this.count = make('span', '', '')
    this.pager.append(this.button('‹', -1), this.count, this.button('›', 1))
    this.grid = make('div', '', GRID)
    for (const part of ['cells', 'edge', 'strip', 'use']) {
      this[part] = make('canvas', `lorweb-heat-map-${part}`, `grid-area:${part}; ${FILL}`)
      this[part].addEventListener('pointermove', (event) => this.setMark(this.locate(event)))
      this.grid.append(this[part])
    }
    const over = make('div', '', 'grid-area:cells; position:relative; overflow:hidden; pointer-events:none')
    this.frame = make('div', '', 'position:absolute; display:none; outline:1px solid rgba(255,255,255,0.85)')
    over.append(this.frame)
    this.grid.append(over)
    const twoRows = 'display:-webkit-box; -webkit-box-orient:vertical; -webkit-line-clamp:2; overflow-wrap:anywhere'
    const font = `font:11px/15px ui-monospace,monospace; ${FAINT}`
    this.line = make('div', '', `flex:0 0 30px; overflow:hidden; ${twoRows}; ${font}`)
    this.element.append(this.pager, this.grid, this.line)
    this.write(translate('hint'))
    this.cells.tabIndex = 0
    this.cells.addEventListener('pointerdown', () => this.cells.focus({ preventScroll: true }))
    this.cells.addEventListener('keydown', (event) => this.step(event))
    this.cells.addEventListener('blur', () => this.setMark(null))
    this.grid.addEventListener('pointerleave', () => document.activeElement !== this.cells && this.setMark(null))
  }

  button(text, step) {
    const button = make('button', '', 'padding:0 8px; cursor:pointer')
    button.textContent = text
    button.addEventListener('click', () => this.show(this.shown + step))
    return button
  }

  setMixes(mixes) {
    this.mixes = mixes
    this.pager.style.display = mixes.length > 1 ? 'flex' : 'none'
    this.show(Math.min(this.shown, mixes.length - 1))
  }

  show(index) {
    const mixes = this.mixes.length
    this.shown = (index + mixes) % mixes
    const data = this.mixes[this.shown]
    this.layers = data.layers
    this.size = data.basis_size
    this.isDifference = data.is_difference
    this.values = decodeFloats(data.values) // row by row, NaN where a layer lacks an adapter
    this.strips = decodeFloats(data.strip)
    this.uses = decodeFloats(data.use)
    drawCells(this.cells, decodeBytes(data.cell_colors), this.size, DRAWN_PX)
    drawCells(this.edge, decodeBytes(data.edge_colors), 2, DRAWN_EDGE_PX)
    drawBars(this.strip, this.strips, true)
    const highest = Math.max(...this.uses, 1e-12)
    drawBars(this.use, this.uses.map((use) => use / highest), false)
    const numbers = { mix: this.shown + 1, mixes, all: data.mixes }
    this.count.textContent = translate(data.mixes > mixes ? 'pagerOfSome' : 'pager', numbers)
    this.setMark(null)
  }

  /** Show at most two rows of text; the tooltip has all of it. */
  write(text) {
    this.line.textContent = text
    this.line.title = text
  }

  setMark(mark) {
    if (!this.mixes.length) return
    this.mark = mark
    this.frame.style.display = mark ? 'block' : 'none'
    const size = translate('size', { layers: this.layers.length, adapters: this.size })
    this.write(mark ? this.describe(mark) : this.layers.length > MANY_LAYERS ? `${size}. ${translate('keys')}` : size)
    if (!mark) return
    const place = (index, count) => (index === null ? ['0', '100%'] : [percent(index / count), percent(1 / count)])
    const [top, height] = place(mark.layer, this.layers.length)
    const [left, width] = place(mark.adapter, this.size)
    Object.assign(this.frame.style, { top, height, left, width })
  }

  /** The cell under the mouse; only its layer on the sides, only its adapter below. */
  locate(event) {
    const box = event.target.getBoundingClientRect() // on the screen, zoom included
    const layer = cellAt((event.clientY - box.top) / box.height, this.layers?.length)
    const adapter = cellAt((event.clientX - box.left) / box.width, this.size)
    if (event.target === this.use) return { layer: null, adapter }
    return { layer, adapter: event.target === this.cells ? adapter : null }
  }

  /** Arrow keys reach every cell, even if several layers share a pixel of the screen. */
  step(event) {
    const arrow = ARROWS[event.key]
    if (!arrow || !this.mixes.length) return
    event.preventDefault()
    event.stopPropagation() // ComfyUI would move the node
    const within = (index, count) => Math.min(Math.max(index, 0), count - 1)
    const { layer, adapter } = this.mark ?? { layer: -arrow[0], adapter: -arrow[1] } // at first the first cell
    this.setMark({
      layer: within((layer ?? this.layers.length) + arrow[0], this.layers.length),
      adapter: within((adapter ?? this.size) + arrow[1], this.size)
    })
  }

  /** Text for a mark: names and numbers. */
  describe({ layer, adapter }) {
    if (layer === null) {
      const use = this.uses[adapter]
      if (this.isDifference) return translate('difference', { adapter, value: use.toFixed(4) })
      return translate('use', { adapter, value: `${(100 * use).toFixed(1)} %` })
    }
    const name = this.layers[layer]
    const share = this.strips[layer]
    const label = translate(this.isDifference ? 'cosine' : 'entropy')
    const strip = Number.isNaN(share) ? translate('off') : `${label} ${share.toFixed(3)}`
    if (adapter === null) return `${name} · ${strip}`
    const row = this.values.subarray(layer * this.size, (layer + 1) * this.size)
    const value = row[adapter]
    if (Number.isNaN(value)) return translate('missing', { layer: name, adapter })
    const rank = 1 + row.filter((other) => Math.abs(other) > Math.abs(value)).length
    return translate('cell', { layer: name, adapter, value: value.toPrecision(4), rank, strip })
  }
}

function make(tag, className, style) {
  const element = document.createElement(tag)
  element.className = className
  element.style.cssText = style
  return element
}

const percent = (share) => `${100 * share}%`
const cellAt = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1)
const decodeBytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0))

/** Base64 of little-endian float32. */
function decodeFloats(text) {
  const view = new DataView(decodeBytes(text).buffer)
  return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true))
}

/** Draw RGB colors [rows, columns, 3] as equally large rectangles. */
function drawCells(canvas, colors, columns, drawnWidth) {
  const rows = colors.length / 3 / columns
  const width = drawnStep(drawnWidth, columns)
  const height = drawnStep(DRAWN_PX, rows)
  canvas.width = columns * width
  canvas.height = rows * height
  const context = canvas.getContext('2d')
  for (let cell = 0; cell < rows * columns; cell++) {
    context.fillStyle = `rgb(${colors.subarray(3 * cell, 3 * cell + 3)})`
    context.fillRect((cell % columns) * width, Math.floor(cell / columns) * height, width, height)
  }
}

/** Draw a bar per share 0–1, from the left or from the top. */
function drawBars(canvas, shares, isHorizontal) {
  const step = drawnStep(DRAWN_PX, shares.length)
  const size = [DRAWN_BAR_PX, step * shares.length]
  ;[canvas.width, canvas.height] = isHorizontal ? size : size.reverse()
  const context = canvas.getContext('2d')
  context.fillStyle = 'rgb(42,43,50)'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.fillStyle = 'rgb(130,150,180)'
  shares.forEach((share, index) => {
    const length = DRAWN_BAR_PX * Math.min(Math.max(share, 0), 1)
    if (isHorizontal) context.fillRect(0, index * step, length, step)
    else context.fillRect(index * step, 0, step, length)
  })
}

app.registerExtension({
  name: 'LoRWeB.CoefficientsHeatMap',
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    node.hideOutputImages = true // ComfyUI would show the same image again below the map
    node.onDrawBackground = () => {} // the same for older frontends
    const map = new HeatMap()
    passWheelTo(app, map.element)
    addElement(node, 'heat_map', map.element, MIN_HEIGHT)
    keepMinWidth(node, map.element.className, MIN_WIDTH)
    onResult(node, (output) => {
      if (output.lorweb_heat_map?.length) map.setMixes(output.lorweb_heat_map)
    })
  }
})
