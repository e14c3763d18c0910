// An HTML element on a node, in both node renderers of ComfyUI. It only shows results: never saved, never sent.

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

/** Set the minimum width of nodes with elements of a class. */
export function keepMinWidth(node, className, width) {
  const before = node.onResize
  node.onResize = function (size) {
    size[0] = Math.max(size[0], width)
    before?.apply(this, arguments)
  }
  node.setSize([Math.max(node.size[0], width), node.size[1]])
  addStyle(`${className}-min-width`, `[data-node-id]:has(.${className}) { --min-node-width: ${width}px !important }`)
}

/** In the HTML renderer only CSS limits the size of a node; onResize runs afterwards. */
function addStyle(id, rule) {
  if (document.getElementById(id)) return
  const style = document.createElement('style')
  style.id = id
  style.textContent = rule
  document.head.append(style)
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
