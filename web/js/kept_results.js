// Shows results on our nodes, and shows them again after a switch to another workflow and back: the frontend keeps the
// outputs of every open workflow.

import { app } from '../../../scripts/app.js'

/** Node → what shows its output. Weak, so that copies that never enter a graph are released. */
const actionsOf = new WeakMap()

/** Run `action` with the node's output after each run, in addition to what the node already does, and on restoring. */
export function onResult(node, action) {
  actionsOf.set(node, [...(actionsOf.get(node) ?? []), action])
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    action(output ?? {})
  }
}

/** The node of a key: `7`, `subgraph id:7` (where it is defined) or `12:7` (where it runs); undefined if not ours. */
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
