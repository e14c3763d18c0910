// The heat map on Preview Coefficients: sharp at any zoom, with names and numbers under the mouse.

import { app } from '../../../scripts/app.js'
import { decodeMix, describeCell, drawMix, findCell } from './heat_map_drawing.js'
import { addElement, onRemove, onResult, passWheelTo } from './node_element.js'

const NODE = 'LoRWeBPreviewCoefficients'
const MIN_HEIGHT = 340
const MIN_WIDTH = 400
/** A zoomed node is scaled by CSS, which tells nobody; so the size on the screen is compared this often. */
const LOOK_EVERY_MS = 150
const MAX_PIXELS_PER_SIDE = 4096
const HINT = 'Run the workflow to see the coefficients.'

class HeatMap {
  constructor() {
    this.mixes = []
    this.shown = 0
    this.mark = null
    this.element = make('div', 'display:flex; flex-direction:column; gap:4px; width:100%; height:100%')
    this.element.style.minHeight = `${MIN_HEIGHT}px`
    this.element.className = 'lorweb-heat-map'
    this.canvas = make('canvas', 'flex:1 1 0; min-height:0; width:100%; cursor:crosshair; display:block')
    this.line = make('div', 'flex:0 0 30px; overflow:hidden; font:11px/15px ui-monospace,monospace; color:#bbb')
    this.line.style.overflowWrap = 'anywhere'
    this.pager = make('div', 'display:none; gap:8px; align-items:center; font:11px sans-serif; color:#bbb')
    this.count = make('span', '')
    this.pager.append(this.button('‹', -1), this.count, this.button('›', 1))
    this.element.append(this.pager, this.canvas, this.line)
    this.line.textContent = HINT
    this.canvas.addEventListener('pointermove', (event) => this.point(event))
    this.canvas.addEventListener('pointerleave', () => this.setMark(null))
    this.timer = setInterval(() => this.redrawIfResized(), LOOK_EVERY_MS)
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
    this.show(0)
  }

  show(index) {
    this.shown = (index + this.mixes.length) % this.mixes.length
    this.count.textContent = `mix ${this.shown + 1} of ${this.mixes.length}`
    this.setMark(null)
  }

  get mix() {
    return this.mixes[this.shown]
  }

  setMark(mark) {
    this.mark = mark
    if (this.mix) {
      const rest = `${this.mix.layers.length} layers × ${this.mix.basisSize} adapters`
      this.line.textContent = mark ? describeCell(this.mix, mark) : rest
    }
    this.draw()
  }

  point(event) {
    if (!this.mix) return
    const box = this.canvas.getBoundingClientRect() // on the screen, zoom included
    const { clientWidth: width, clientHeight: height } = this.canvas
    const x = ((event.clientX - box.left) / box.width) * width
    const y = ((event.clientY - box.top) / box.height) * height
    this.setMark(findCell(this.mix, { width, height, x, y }))
  }

  /** Device pixels per CSS pixel, so that one pixel of the drawing is one of the screen. */
  pixelScale() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    const zoom = this.canvas.getBoundingClientRect().width / Math.max(width, 1)
    const scale = zoom * (window.devicePixelRatio || 1)
    return Math.max(0.1, Math.min(scale, MAX_PIXELS_PER_SIDE / Math.max(width, height, 1)))
  }

  redrawIfResized() {
    if (!this.mix || !this.canvas.isConnected || !this.canvas.clientWidth) return
    const { clientWidth: width, clientHeight: height } = this.canvas
    const scale = this.pixelScale()
    const isSame = this.canvas.width === Math.round(width * scale) && this.canvas.height === Math.round(height * scale)
    if (!isSame) this.draw()
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    if (!this.mix || !width || !height) return
    const scale = this.pixelScale()
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

/** The host would show the same picture again below the map. */
function hideHostPicture(node) {
  node.hideOutputImages = true
  node.onDrawBackground = () => {} // older frontends, which do not know the property
}

app.registerExtension({
  name: 'LoRWeB.CoefficientsHeatMap',
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    hideHostPicture(node)
    const map = new HeatMap()
    passWheelTo(app, map.element)
    addElement(node, 'heat_map', map.element, MIN_HEIGHT)
    node.setSize([Math.max(node.size[0], MIN_WIDTH), node.size[1]])
    onResult(node, (output) => {
      if (output.lorweb_heat_map?.length) map.setMixes(output.lorweb_heat_map)
    })
    onRemove(node, () => clearInterval(map.timer))
  }
})
