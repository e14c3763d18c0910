// A piece of HTML on a node, in both of the host's node renderers. It shows results only: never saved, never sent.

/**
 * Add an element to a node as a widget that takes no part in workflows and prompts.
 * `minHeight` is in CSS pixels; the node grows to make room and can be made larger.
 */
export function addElement(node, name, element, minHeight) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => minHeight, getValue: () => '' }
  const widget = node.addDOMWidget(name, `LORWEB_${name.toUpperCase()}`, element, options)
  widget.serialize = false
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  return widget
}

/** Run `action` with the node's output after each run, behind whatever the node already does. */
export function onResult(node, action) {
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    action(output ?? {})
  }
}

/** Run `action` when the node is deleted. */
export function onRemove(node, action) {
  const before = node.onRemoved
  node.onRemoved = function () {
    before?.apply(this, arguments)
    action()
  }
}

/** Let the mouse wheel zoom the graph instead of being swallowed by the element. */
export function passWheelTo(app, element) {
  element.addEventListener('wheel', (event) => {
    const canScroll = element.scrollHeight > element.clientHeight && document.activeElement === element
    if (canScroll) return
    event.preventDefault()
    app.canvas?.processMouseWheel?.(event)
  })
}
