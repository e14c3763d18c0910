// Reports as text on the node: what Apply did, what was saved, what a preview shows.

import { app } from '../../../scripts/app.js'
import { addElement, onResult, passWheelTo } from './node_results.js'

const NODES = new Set([
  'LoRWeBApplyMixedLoRA',
  'LoRWeBSaveMixedLoRA',
  'LoRWeBSaveCoefficients',
  'LoRWeBLoadCoefficients',
  'LoRWeBEncodeAnalogies',
  'LoRWeBPreviewCoefficients'
])
const MIN_HEIGHT = 110

function showText(node, lines) {
  if (!node.lorwebReport) {
    // The text scrolls in a frame, so that it does not change the size of the node.
    const frame = document.createElement('div')
    frame.style.cssText = `position:relative; width:100%; height:100%; min-height:${MIN_HEIGHT}px`
    const text = document.createElement('div')
    text.className = 'lorweb-report'
    text.tabIndex = 0
    text.style.cssText =
      'position:absolute; inset:0; box-sizing:border-box; overflow:auto; padding:6px 8px; border-radius:6px;' +
      'white-space:pre-wrap; overflow-wrap:anywhere; font:11px/1.45 ui-monospace,monospace; user-select:text;' +
      'background:var(--comfy-input-bg,#222); color:var(--input-text,#ddd)'
    frame.append(text)
    passWheelTo(app, text)
    addElement(node, 'report_text', frame, MIN_HEIGHT)
    node.lorwebReport = text
  }
  node.lorwebReport.textContent = lines
}

app.registerExtension({
  name: 'LoRWeB.ReportText',
  nodeCreated(node) {
    if (!NODES.has(node.comfyClass)) return
    onResult(node, (output) => {
      const lines = [output.text ?? []].flat()
      if (lines.length) showText(node, lines.join('\n'))
    })
  }
})
