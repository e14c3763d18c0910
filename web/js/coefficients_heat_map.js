// The heat map on Preview Coefficients: sharp at any zoom, with the names and numbers of the cell under the mouse.

import { app } from '../../../scripts/app.js'
import { decodeMix, describeCell, drawMix, findCell, moveCell } from './heat_map_drawing.js'
import { addElement, keepMinWidth, onResult, passWheelTo } from './node_results.js'
import { translate } from './translations.js'

const NODE = 'LoRWeBPreviewCoefficients'
const MIN_HEIGHT = 340
const MIN_WIDTH = 400
/** A zoomed node is scaled by CSS, which sends no event, so its size on the screen is checked this often. */
const CHECK_EVERY_MS = 150
const MAX_PIXELS_PER_SIDE = 4096
/** Below this height the mouse cannot reach every row, and the line mentions the arrow keys. */
const MIN_ROW_PX = 1.5
/** ComfyUI's color for text on node inputs, dark in light palettes. */
const FAINT = 'color:var(--input-text,#bbb)'
const ARROWS = {
  ArrowUp: { rows: -1, columns: 0 },
  ArrowDown: { rows: 1, columns: 0 },
  ArrowLeft: { rows: 0, columns: -1 },
  ArrowRight: { rows: 0, columns: 1 }
}

/** Maps on the page, checked by one timer, which runs only while there are any. */
const onPage = new Set()
let timer = null

function redrawResized() {
  for (const map of onPage) {
    if (map.canvas.isConnected) map.redrawIfResized()
    else onPage.delete(map)
  }
  if (onPage.size) return
  clearInterval(timer)
  timer = null
}

class HeatMap {
  constructor() {
    this.mixes = []
    this.shown = 0
    this.mark = null
    this.element = make('div', 'display:flex; flex-direction:column; gap:4px; width:100%; height:100%')
    this.element.style.minHeight = `${MIN_HEIGHT}px`
    this.element.className = 'lorweb-heat-map'
    this.canvas = make('canvas', 'flex:1 1 0; min-height:0; width:100%; cursor:crosshair; display:block')
    this.canvas.tabIndex = 0
    this.line = make('div', `flex:0 0 30px; overflow:hidden; font:11px/15px ui-monospace,monospace; ${FAINT}`)
    this.line.style.cssText += 'display:-webkit-box; -webkit-box-orient:vertical; -webkit-line-clamp:2'
    this.line.style.overflowWrap = 'anywhere'
    this.pager = make('div', `display:none; gap:8px; align-items:center; font:11px sans-serif; ${FAINT}`)
    this.count = make('span', '')
    this.pager.append(this.button('‹', -1), this.count, this.button('›', 1))
    this.element.append(this.pager, this.canvas, this.line)
    this.write(translate('hint'))
    this.canvas.addEventListener('pointermove', (event) => this.point(event))
    this.canvas.addEventListener('pointerleave', () => document.activeElement !== this.canvas && this.setMark(null))
    this.canvas.addEventListener('blur', () => this.setMark(null))
    this.canvas.addEventListener('pointerdown', () => this.canvas.focus({ preventScroll: true }))
    this.canvas.addEventListener('keydown', (event) => this.step(event))
    // Also called when the canvas enters the page; never for copies of a node that stay outside, as in a clipboard.
    new ResizeObserver(() => {
      if (!this.canvas.isConnected) return
      onPage.add(this)
      timer ??= setInterval(redrawResized, CHECK_EVERY_MS)
      this.redrawIfResized()
    }).observe(this.canvas)
  }

  button(text, step) {
    const button = make('button', 'padding:0 8px; cursor:pointer')
    button.textContent = text
    button.addEventListener('click', () => this.show(this.shown + step))
    return button
  }

  setMixes(data) {
    this.mixes = data.map(decodeMix)
    this.pager.style.display = this.mixes.length > 1 ? 'flex' : 'none'
    this.show(Math.min(this.shown, this.mixes.length - 1))
  }

  show(index) {
    const mixes = this.mixes.length
    this.shown = (index + mixes) % mixes
    const all = this.mix.all
    this.count.textContent = translate(all > mixes ? 'pagerOfSome' : 'pager', { mix: this.shown + 1, mixes, all })
    this.setMark(null)
  }

  get mix() {
    return this.mixes[this.shown]
  }

  /** Show at most two rows of text; the tooltip has all of it. */
  write(text) {
    this.line.textContent = text
    this.line.title = text
  }

  setMark(mark) {
    this.mark = mark
    if (this.mix) this.write(mark ? describeCell(this.mix, mark, translate) : this.describeSize())
    this.draw()
  }

  describeSize() {
    const { layers, basisSize } = this.mix
    const size = translate('size', { layers: layers.length, adapters: basisSize })
    const { clientHeight: height } = this.canvas // 0 until the canvas is on the page
    return height && height / layers.length < MIN_ROW_PX ? `${size}. ${translate('keys')}` : size
  }

  point(event) {
    if (!this.mix) return
    const box = this.canvas.getBoundingClientRect() // on the screen, zoom included
    const { clientWidth: width, clientHeight: height } = this.canvas
    const x = ((event.clientX - box.left) / box.width) * width
    const y = ((event.clientY - box.top) / box.height) * height
    this.setMark(findCell(this.mix, { width, height, x, y }))
  }

  /** Arrow keys reach every cell, even if several layers share a pixel of the screen. */
  step(event) {
    const arrow = ARROWS[event.key]
    if (!arrow || !this.mix) return
    event.preventDefault()
    event.stopPropagation() // ComfyUI would move the node
    this.setMark(moveCell(this.mix, this.mark, arrow))
  }

  /** Size in CSS pixels, and device pixels per CSS pixel, so that a drawn pixel is one pixel of the screen. */
  measure() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    const zoom = this.canvas.getBoundingClientRect().width / Math.max(width, 1)
    const limit = MAX_PIXELS_PER_SIDE / Math.max(width, height, 1)
    return { width, height, scale: Math.max(0.1, Math.min(zoom * (window.devicePixelRatio || 1), limit)) }
  }

  redrawIfResized() {
    if (!this.mix || !this.canvas.isConnected || !this.canvas.clientWidth) return
    const { width, height, scale } = this.measure()
    const isSame = this.canvas.width === Math.round(width * scale) && this.canvas.height === Math.round(height * scale)
    if (!isSame) this.setMark(this.mark)
  }

  draw() {
    const { width, height, scale } = this.measure()
    if (!this.mix || !width || !height) return
    this.canvas.width = Math.round(width * scale)
    this.canvas.height = Math.round(height * scale)
    drawMix(this.canvas.getContext('2d'), this.mix, { width, height, scale, mark: this.mark })
  }
}

function make(tag, style) {
  const element = document.createElement(tag)
  element.style.cssText = style
  return element
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
