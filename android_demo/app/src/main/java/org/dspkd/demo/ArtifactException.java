package org.dspkd.demo;

/** What is wrong with an artifact, and what to do about it, in a sentence that can be shown. */
final class ArtifactException extends Exception {
    private static final long serialVersionUID = 1L;

    ArtifactException(String message) {
        super(message);
    }

    ArtifactException(String message, Throwable cause) {
        super(message, cause);
    }
}
