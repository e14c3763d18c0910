// Reports as text on the node: what Apply did, what was saved, what a preview says.

import { app } from '../../../scripts/app.js'
import { addElement, onResult, passWheelTo } from './node_element.js'

const NODES = new Set([
  'LoRWeBApplyMixedLoRA',
  'LoRWeBSaveMixedLoRA',
  'LoRWeBSaveCoefficients',
  'LoRWeBLoadCoefficients',
  'LoRWeBEncodeAnalogies',
  'LoRWeBPreviewCoefficients'
])
const MIN_HEIGHT = 110

function showText(node, text) {
  if (!node.lorwebReport) {
    const element = document.createElement('div')
    element.className = 'lorweb-report'
    element.tabIndex = 0
    element.style.cssText =
      'box-sizing:border-box; width:100%; height:100%; overflow:auto; padding:6px 8px; border-radius:6px;' +
      'white-space:pre-wrap; overflow-wrap:anywhere; font:11px/1.45 ui-monospace,monospace; user-select:text;' +
      'background:var(--comfy-input-bg,#222); color:var(--input-text,#ddd);' +
      `min-height:${MIN_HEIGHT}px`
    passWheelTo(app, element)
    addElement(node, 'report_text', element, MIN_HEIGHT)
    node.lorwebReport = element
  }
  node.lorwebReport.textContent = text
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
