// Results as HTML elements on our nodes, in both node renderers of ComfyUI. They are never saved or sent, and they come
// back after switching to another workflow and back, since the frontend keeps the outputs of every open workflow.

import { app } from '../../../scripts/app.js'

/** Node → functions that show its output. Weak, so that copies that never enter a graph are released. */
const actionsOf = new WeakMap()

/** Call `action` with the node's output after each run, in addition to what the node does, and when it is restored. */
export function onResult(node, action) {
  actionsOf.set(node, [...(actionsOf.get(node) ?? []), action])
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    action(output ?? {})
  }
}

/** The node of a key: `7`, `subgraph id:7` (where it is defined) or `12:7` (where it runs). */
function findNode(key) {
  const path = String(key).split(':')
  let graph = app.rootGraph ?? app.graph
  if (graph?.subgraphs?.has(path[0])) graph = graph.subgraphs.get(path.shift())
  const last = path.pop()
  for (const id of path) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(last)
}

function restore(outputs) {
  for (const [key, output] of Object.entries(outputs ?? {})) {
    const node = output && findNode(key)
    if (node) actionsOf.get(node)?.forEach((action) => action(output))
  }
}

app.registerExtension({
  name: 'LoRWeB.KeptResults',
  onNodeOutputsUpdated: restore,
  afterConfigureGraph: () => restore(app.nodeOutputs)
})

/** Add an element to a node as a widget; the node grows to make room for `minHeight` CSS pixels. */
export function addElement(node, name, element, minHeight) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => minHeight, getValue: () => '' }
  const widget = node.addDOMWidget(name, `LORWEB_${name.toUpperCase()}`, element, options)
  widget.serialize = false
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
}

/** Set the minimum width of nodes with elements of a class. */
export function keepMinWidth(node, className, width) {
  const before = node.onResize
  node.onResize = function (size) {
    size[0] = Math.max(size[0], width)
    before?.apply(this, arguments)
  }
  node.setSize([Math.max(node.size[0], width), node.size[1]])
  // In the HTML renderer only CSS limits the size of a node; onResize is called afterwards.
  const id = `${className}-min-width`
  if (document.getElementById(id)) return
  const style = document.createElement('style')
  style.id = id
  style.textContent = `[data-node-id]:has(.${className}) { --min-node-width: ${width}px !important }`
  document.head.append(style)
}

/** Let the mouse wheel over the element zoom the graph. */
export function passWheelTo(app, element) {
  element.addEventListener('wheel', (event) => {
    const canScroll = element.scrollHeight > element.clientHeight && document.activeElement === element
    if (canScroll) return
    event.preventDefault()
    app.canvas?.processMouseWheel?.(event)
  })
}
