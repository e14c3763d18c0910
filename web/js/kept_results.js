// Results that a node showed come back: after a switch to another workflow and back, after a reload of the page, and
// when the host does not run a node again because nothing has changed. Three sources, in this order:
// the host's message after each run; the outputs that the frontend keeps for each open workflow; the server's history.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

/** Entries of the history can be large: workflow, prompt and what previews show. */
const HISTORY_ITEMS = 10

/** Node → what shows its output. Copies that never come into a graph take their entry with them. */
const actionsOf = new WeakMap()
const filled = new WeakSet()
/** Workflow's id → its runs in the history: the frontend does not keep them, and they are asked for once per page. */
const runsOf = new Map()
let cachedNodes = []

/** Run `action` with the node's output after each run, behind whatever the node already does, and on restoring. */
export function onResult(node, action) {
  actionsOf.set(node, [...(actionsOf.get(node) ?? []), action])
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    filled.add(node)
    action(output ?? {})
  }
}

function restore(node, output) {
  filled.add(node)
  actionsOf.get(node).forEach((action) => action(output))
}

function rootGraph() {
  return app.rootGraph ?? app.graph
}

/** Our node that a key names: `7`, `subgraph's id:7` (where it is defined) or `12:7` (where it is run); or undefined. */
function findNode(key) {
  const path = String(key).split(':')
  let graph = rootGraph()
  if (graph?.subgraphs?.has(path[0])) graph = graph.subgraphs.get(path.shift())
  const last = path.pop()
  for (const id of path) graph = graph?.getNodeById(id)?.subgraph
  const node = graph?.getNodeById(last)
  return node && actionsOf.has(node) ? node : undefined
}

function restoreKept(outputs) {
  for (const [key, output] of Object.entries(outputs ?? {})) {
    const node = output && findNode(key)
    if (node) restore(node, output)
  }
}

function isEmpty(node) {
  return !filled.has(node)
}

/** Ids of a node and of all that lead to it. */
function leadingTo(prompt, id, found = new Set()) {
  if (!prompt[id] || found.has(id)) return []
  found.add(id)
  for (const value of Object.values(prompt[id].inputs)) if (Array.isArray(value)) leadingTo(prompt, value[0], found)
  return [...found]
}

/** Whether two prompts ask for the same at a node; titles do not count. */
function isSameRequest(then, now, id) {
  const request = (node) => JSON.stringify([node?.class_type, node?.inputs])
  return leadingTo(now, id).every((key) => request(then[key]) === request(now[key]))
}

/** Read until a run is among them: the host notes a run down shortly after it has told of its end. */
async function readHistoryWith(id) {
  for (let patience = 5; ; patience--) {
    const runs = await readHistory()
    if (!id || !patience || runs.some((run) => run.id === id)) return runs
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
}

/** Runs, newest first: what was asked, of which workflow, and what came out. */
async function readHistory() {
  const answer = await api.fetchApi(`/history?max_items=${HISTORY_ITEMS}`)
  if (!answer.ok) return []
  return Object.entries(await answer.json())
    .sort(([, one], [, other]) => other.prompt[0] - one.prompt[0])
    .map(([id, { prompt, outputs }]) => ({
      id,
      workflow: prompt[3]?.extra_pnginfo?.workflow,
      prompt: prompt[2],
      outputs: outputs ?? {}
    }))
}

/** What nodes of a workflow are set to: id → text. */
function settingsOf(workflow) {
  return new Map((workflow?.nodes ?? []).map((node) => [String(node.id), JSON.stringify(node.widgets_values ?? [])]))
}

/** A run of the open workflow, with every node that leads to one of ours still set as it was then. */
function findRunOf(id, runs) {
  const run = runs.find(({ workflow }) => workflow?.id === id)
  if (!run) return undefined
  const [then, now] = [settingsOf(run.workflow), settingsOf(rootGraph().serialize())]
  const isUnchanged = (key) => then.get(key) === now.get(key)
  const kept = Object.keys(run.prompt).filter((key) => findNode(key) && leadingTo(run.prompt, key).every(isUnchanged))
  return { prompt: run.prompt, ids: kept }
}

/** Fill nodes that show nothing with what a run gave, or, where it used a kept result, an equal request before. */
async function restoreFromHistory(chooseRun, awaitedRun) {
  const { id: workflow } = rootGraph()
  const runs = runsOf.get(workflow) ?? (await readHistoryWith(awaitedRun))
  if (rootGraph().id !== workflow) return // another one was opened meanwhile
  runsOf.set(workflow, runs)
  const { prompt: now, ids } = chooseRun(runs) ?? { ids: [] }
  for (const id of ids) {
    const node = findNode(id)
    if (!node || !isEmpty(node) || node.comfyClass !== now[id]?.class_type) continue
    const run = runs.find(({ prompt, outputs }) => outputs[id] && isSameRequest(prompt, now, id))
    if (run) restore(node, run.outputs[id])
  }
}

function hasEmptyNode() {
  const graph = rootGraph()
  const graphs = [graph, ...(graph.subgraphs?.values() ?? [])]
  return graphs.some(({ nodes }) => nodes.some((node) => actionsOf.has(node) && isEmpty(node)))
}

app.registerExtension({
  name: 'LoRWeB.KeptResults',
  setup() {
    api.addEventListener('execution_cached', ({ detail }) => (cachedNodes = detail?.nodes ?? []))
    api.addEventListener('execution_success', ({ detail }) => {
      const ids = cachedNodes.filter((id) => findNode(id) && isEmpty(findNode(id)))
      cachedNodes = []
      if (!ids.length) return
      runsOf.delete(rootGraph().id)
      const newest = detail?.prompt_id
      restoreFromHistory((runs) => ({ ids, prompt: runs.find(({ id }) => id === newest)?.prompt ?? {} }), newest)
    })
  },
  onNodeOutputsUpdated: restoreKept,
  afterConfigureGraph() {
    const { id } = rootGraph()
    restoreKept(app.nodeOutputs)
    if (hasEmptyNode()) restoreFromHistory((runs) => findRunOf(id, runs))
  }
})
