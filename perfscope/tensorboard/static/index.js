// TensorBoard loads this module into the plugin's frame and calls render(); the page itself is ours.
export async function render() {
  document.location.href = 'index.html';
}
