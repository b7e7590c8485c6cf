package org.dspkd.demo;

/** A student that answers pictures that have been prepared for it. */
interface Model extends AutoCloseable {
    /**
     * @param pixels a picture of the model's size, after step 4 of export/preprocessing.md
     * @return one probability a class, in the order of the artifact's classes
     */
    float[] probabilities(Rgb pixels);

    @Override
    void close();
}
